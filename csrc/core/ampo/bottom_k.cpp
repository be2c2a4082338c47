// AMPO (5): the k lowest rewards, and among equals whoever is least like those chosen.
#include <algorithm>
#include <cmath>

#include "core/ampo/group.hpp"

namespace pyfast {

namespace {

constexpr double kSameCosine = 1e-12;  // more than the rounding of parallel rows

// Its square, a power of two, brings a row's largest number near 1; once might overflow.
template <class T>
double half_scale(const T* a, index d) {
  T largest = 0;
  for (index t = 0; t < d; ++t) largest = std::max(largest, std::abs(a[t]));
  return largest > 0 ? std::ldexp(1.0, -std::ilogb(largest) / 2) : 1.0;
}

// Of scaled rows, whose squares neither overflow nor vanish.
template <class T>
double cosine(const T* a, const T* b, index d) {
  const double half_a = half_scale(a, d), half_b = half_scale(b, d);
  double dot = 0, aa = 0, bb = 0;
  for (index t = 0; t < d; ++t) {
    const double x = static_cast<double>(a[t]) * half_a * half_a;
    const double y = static_cast<double>(b[t]) * half_b * half_b;
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa > 0 && bb > 0 ? dot / (std::sqrt(aa) * std::sqrt(bb)) : 0.0;
}

}  // namespace

template <class T>
GroupSelection bottom_k(MatrixView<T> embeddings, const double* rewards, index n, index k,
                        Work& work) {
  GroupSelection selection;
  selection.positive = first_highest(rewards, n);
  std::vector<index>& chosen = selection.negatives;
  std::vector<index> open = pool_of(n, selection.positive);
  const auto by_reward = [&](index a, index b) { return rewards[a] < rewards[b]; };
  std::stable_sort(open.begin(), open.end(), by_reward);

  // Largest cosine of a response to the first `compared` chosen ones; brought up to date only
  // while the response is tied for the next place.
  std::vector<double> closest(static_cast<std::size_t>(n), -2.0);
  std::vector<std::size_t> compared(static_cast<std::size_t>(n), 0);
  const auto similarity = [&](index i) {
    for (std::size_t& c = compared[i]; c < chosen.size(); ++c) {
      work.spend(embeddings.cols);
      closest[i] = std::max(closest[i],
                            cosine(embeddings.row(i), embeddings.row(chosen[c]), embeddings.cols));
    }
    return closest[i];
  };

  for (auto next = open.begin(); next != open.end() && static_cast<index>(chosen.size()) < k;
       ++next) {
    const auto tied_end = std::upper_bound(next, open.end(), *next, by_reward);
    if (embeddings.data != nullptr && tied_end - next > 1) {
      auto least = next;
      for (auto other = next + 1; other != tied_end; ++other) {
        if (similarity(*other) < similarity(*least) - kSameCosine) least = other;
      }
      std::rotate(next, least, least + 1);  // the other tied ones stay in index order
    }
    chosen.push_back(*next);
    selection.cost += rewards[*next];
  }
  return selection;
}

template GroupSelection bottom_k(MatrixView<float>, const double*, index, index, Work&);
template GroupSelection bottom_k(MatrixView<double>, const double*, index, index, Work&);

}  // namespace pyfast
