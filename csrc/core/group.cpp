#include "core/group.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "simd/simd.hpp"

namespace pyfast {

namespace {

// The group's indices without the positive, ascending.
std::vector<index> pool_of(index n, index positive) {
  std::vector<index> pool;
  pool.reserve(static_cast<std::size_t>(n));
  for (index i = 0; i < n; ++i) {
    if (i != positive) pool.push_back(i);
  }
  return pool;
}

template <class T>
std::vector<T> gather(MatrixView<T> x, const std::vector<index>& rows) {
  std::vector<T> out;
  out.reserve(rows.size() * static_cast<std::size_t>(x.cols));
  for (const index i : rows) out.insert(out.end(), x.row(i), x.row(i) + x.cols);
  return out;
}

template <class T>
double cosine(const T* a, const T* b, index d) {
  double dot = 0, aa = 0, bb = 0;
  for (index t = 0; t < d; ++t) {
    const double x = static_cast<double>(a[t]), y = static_cast<double>(b[t]);
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa > 0 && bb > 0 ? dot / (std::sqrt(aa) * std::sqrt(bb)) : 0.0;
}

bool valid(const float* x, index count) { return simd::kernels().valid_f32(x, count, false); }
bool valid(const double* x, index count) { return simd::kernels().valid_f64(x, count, false); }

}  // namespace

index first_highest(const double* rewards, index n) {
  return std::max_element(rewards, rewards + n) - rewards;
}

template <class T>
GroupSelection coreset(MatrixView<T> embeddings, const double* rewards, index k,
                       const KMeansOptions& options, ExactSquares& workspace, Token& token) {
  const index n = embeddings.rows;
  GroupSelection selection;
  selection.positive = first_highest(rewards, n);
  const std::vector<index> pool = pool_of(n, selection.positive);
  if (!valid(embeddings.data, n * embeddings.cols)) {
    throw std::range_error("an embedding is not finite");
  }
  if (k >= n - 1) {
    selection.negatives = pool;
    return selection;
  }
  const std::vector<T> x = gather(embeddings, pool);
  const KMeansSolution clusters =
      kmeans(MatrixView<T>{x.data(), n - 1, embeddings.cols}, k, options, workspace, token);
  std::vector<index> lowest(static_cast<std::size_t>(k), -1);
  for (std::size_t i = 0; i < pool.size(); ++i) {
    index& low = lowest[clusters.labels[i]];
    if (low < 0 || rewards[pool[i]] < rewards[low]) low = pool[i];
  }
  std::sort(lowest.begin(), lowest.end());
  selection.negatives = std::move(lowest);
  selection.cost = clusters.inertia;
  return selection;
}

template <class T>
GroupSelection bottom_k(MatrixView<T> embeddings, const double* rewards, index n, index k,
                        Token& token) {
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
      token.spend(embeddings.cols);
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
        if (similarity(*other) < similarity(*least)) least = other;
      }
      std::rotate(next, least, least + 1);  // the other tied ones stay in index order
    }
    chosen.push_back(*next);
    selection.cost += rewards[*next];
  }
  return selection;
}

#define PYFAST_INSTANTIATE(T)                                                                \
  template GroupSelection coreset(MatrixView<T>, const double*, index, const KMeansOptions&, \
                                  ExactSquares&, Token&);                                    \
  template GroupSelection bottom_k(MatrixView<T>, const double*, index, index, Token&);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
