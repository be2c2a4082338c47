#include "core/logdet/best_subset.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "core/logdet/wide.hpp"
#include "core/logdet/wide_residuals.hpp"

namespace pyfast {

namespace {

constexpr double kShortByRest = 1e-6;

// Goes through the subsets S of k, or, where nearly all are chosen, through what they leave out:
// with P = ridge (ridge I + V V^T)^{-1} and C the complement of S,
//   det(I + (V V^T)_SS / ridge) = det(I + V V^T / ridge) det P_CC,
// and the largest C come first, so that S still come in lexicographic order.
template <int N>
class Search {
 public:
  Search(index n, index k, bool by_rest, double gamma, double scale)
      : n_(n),
        k_(by_rest ? n - k : k),
        by_rest_(by_rest),
        ridge_(Wide<N>(gamma) * Wide<N>(scale).inverse()),
        inverse_ridge_(ridge_.inverse()),
        products_(static_cast<std::size_t>(n * n)),
        levels_(static_cast<std::size_t>(k_)),
        path_(static_cast<std::size_t>(k_)) {
    for (Level& level : levels_) {
      level.z.resize(static_cast<std::size_t>(n));
      level.rho.resize(static_cast<std::size_t>(n));
    }
  }

  void run(const std::vector<double>& rows, MatrixView<double> before, index* picks, Work& work) {
    multiply(rows, before, work);
    const double value = by_rest_ ? invert(work) : 0.0;
    for (index j = 0; j < n_; ++j) levels_[0].rho[j] = product(j, j);
    extend(0, 0, value, picks, work);
  }

 private:
  // What the candidates are after the first t of a subset, and what its next one makes of them: of
  // those below `known`.
  struct Level {
    std::vector<Wide<N>> z, rho;
    std::vector<Wide<N>> row;
    Wide<N> inverse_pivot;
    index known = 0;
  };

  Wide<N>& product(index i, index j) { return products_[i * n_ + j]; }  // j <= i

  // Products of all pairs, once the vectors of `before` are eliminated.
  void multiply(const std::vector<double>& rows, MatrixView<double> before, Work& work) {
    const index total = before.rows + n_, d = before.cols;
    std::vector<Doubles> all;
    for (index i = 0; i < total; ++i) {
      all.emplace_back(i < before.rows ? before.row(i) : rows.data() + (i - before.rows) * d, d);
    }
    for (index i = 0; i < n_; ++i) {
      for (index j = 0; j <= i; ++j) {
        work.spend(8 * d);
        product(i, j) = dot<N>(all[before.rows + i], all[before.rows + j]);
      }
    }
    std::vector<std::vector<Wide<N>>> factor(static_cast<std::size_t>(total));
    std::vector<Wide<N>> pivots;
    for (index i = 0; i < total; ++i) {
      std::vector<Wide<N>>& z = factor[i];
      for (index q = 0; q < std::min(i, before.rows); ++q) {
        work.spend(8 * d + 32 * q);
        Wide<N> entry = dot<N>(all[i], all[q]);
        for (index s = 0; s < q; ++s) entry = entry - z[s] * factor[q][s] * pivots[s];
        z.push_back(entry);
      }
      if (i >= before.rows) continue;
      Wide<N> pivot = ridge_ + dot<N>(all[i], all[i]);
      for (index s = 0; s < i; ++s) pivot = pivot - z[s] * z[s] * pivots[s];
      pivots.push_back(pivot.inverse());
    }
    for (index i = 0; i < n_ && before.rows > 0; ++i) {
      for (index j = 0; j <= i; ++j) {
        work.spend(64 * before.rows);
        for (index s = 0; s < before.rows; ++s) {
          product(i, j) =
              product(i, j) - factor[before.rows + i][s] * factor[before.rows + j][s] * pivots[s];
        }
      }
    }
  }

  // Makes P of the products, and returns log det(I + V V^T / ridge).
  double invert(Work& work) {
    double value = 0;
    std::vector<Wide<N>> pivots;
    for (index s = 0; s < n_; ++s) {  // L D L^T of ridge I + products, L below the diagonal
      for (index j = 0; j < s; ++j) {
        work.spend(32 * j);
        for (index q = 0; q < j; ++q) {
          product(s, j) = product(s, j) - product(s, q) * product(j, q) * pivots[q];
        }
      }
      Wide<N> pivot = ridge_ + product(s, s);
      for (index q = 0; q < s; ++q) pivot = pivot - product(s, q) * product(s, q) * pivots[q];
      value += std::log1p(((pivot - ridge_) * inverse_ridge_).value());
      pivots.push_back(pivot.inverse());
    }
    std::vector<Wide<N>> inverse(products_.size());  // of L
    for (index j = 0; j < n_; ++j) {
      inverse[j * n_ + j] = Wide<N>(1.0);
      for (index s = j + 1; s < n_; ++s) {
        work.spend(32 * (s - j));
        Wide<N> entry;
        for (index q = j; q < s; ++q) {
          entry = entry - product(s, q) * pivots[q] * inverse[q * n_ + j];
        }
        inverse[s * n_ + j] = entry;
      }
    }
    for (index i = 0; i < n_; ++i) {
      for (index j = 0; j <= i; ++j) {
        work.spend(32 * (n_ - i));
        Wide<N> entry;
        for (index s = i; s < n_; ++s) {
          entry = entry + inverse[s * n_ + i] * inverse[s * n_ + j] * pivots[s];
        }
        product(i, j) = entry * ridge_;
      }
    }
    return value;
  }

  Wide<N> pivot_of(const Wide<N>& rho) const { return by_rest_ ? rho : ridge_ + rho; }
  double gain_of(const Wide<N>& rho) const {
    if (!by_rest_) return std::log1p((rho * inverse_ridge_).value());
    const double value = rho.value();  // at most 1, and often nearly
    return value < 0.5 ? std::log(value) : std::log1p((rho - Wide<N>(1.0)).value());
  }

  void take(index* picks) const {
    if (!by_rest_) {
      std::copy(path_.begin(), path_.end(), picks);
      return;
    }
    for (index i = 0, c = 0; i < n_; ++i) {
      if (c < k_ && path_[c] == i) {
        ++c;
      } else {
        *picks++ = i;
      }
    }
  }

  // Brings candidate j past the first t of the path, and before it those that come before it.
  void bring_up(index j, index t, Work& work) {
    for (index s = 0; s < t; ++s) {
      Level& level = levels_[s];
      for (; level.known <= j; ++level.known) {
        work.spend(32 * (s + 2));
        Wide<N>& z = level.z[level.known] = product(level.known, path_[s]);
        for (index q = 0; q < s; ++q) z = z - levels_[q].z[level.known] * level.row[q];
        levels_[s + 1].rho[level.known] = level.rho[level.known] - z * z * level.inverse_pivot;
      }
    }
  }

  // Goes through all that begin with the first t of path_, whose value is `value`.
  void extend(index t, index from, double value, index* picks, Work& work) {
    Level& level = levels_[t];
    const index until = n_ - (k_ - 1 - t);  // so many have to follow
    for (index next = from; next < until; ++next) {
      const index i = by_rest_ ? from + until - 1 - next : next;
      bring_up(i, t, work);
      path_[t] = i;
      const double with = value + gain_of(level.rho[i]);
      if (t + 1 < k_) {
        level.inverse_pivot = pivot_of(level.rho[i]).inverse();
        level.row.clear();
        for (index s = 0; s < t; ++s) {
          level.row.push_back(levels_[s].z[i] * levels_[s].inverse_pivot);
        }
        level.known = i + 1;
        extend(t + 1, i + 1, with, picks, work);
      } else if (!found_ || with > best_ * (1 + kSubsetTie)) {
        found_ = true;
        best_ = with;
        take(picks);
      }
    }
  }

  index n_, k_;  // k_ of them are looked for
  bool by_rest_;
  Wide<N> ridge_, inverse_ridge_;
  std::vector<Wide<N>> products_;
  std::vector<Level> levels_;
  std::vector<index> path_;
  bool found_ = false;
  double best_ = 0;
};

}  // namespace

void best_subset(const Candidates& candidates, index k, double gamma, double scale,
                 MatrixView<double> before, index* picks, Work& work) {
  const index n = candidates.count(), d = candidates.dims();
  if (k == n) {
    std::iota(picks, picks + k, index{0});
    return;
  }
  std::vector<double> rows(static_cast<std::size_t>(n * d));
  double longest = 0;
  for (index i = 0; i < n + before.rows; ++i) {
    work.spend(8 * d);
    if (i < n) candidates.copy(i, rows.data() + i * d);
    const double length =
        wide_length(i < n ? rows.data() + i * d : before.row(i - n), d, gamma, scale);
    if (!std::isfinite(length))
      throw std::range_error("a squared length times scale / gamma overflows");
    longest = std::max(longest, length);
  }
  const MatrixView<double> first{before.data, before.rows, d};
  const double bits =
      std::log2(std::max(longest, 1.0)) + std::log2(static_cast<double>(n + before.rows)) + 2;
  // A determinant of P is as small as 1 / kappa, so that errors of kappa count twice as many bits;
  // and it tells no vectors apart that are so short that it is nearly 1.
  const bool by_rest =
      2 * (n - k) < k && longest > kShortByRest && 2 * bits + kSpareBits <= 64 * kMostWords;
  with_words(by_rest ? 2 * bits : bits, [&](auto words) {
    Search<decltype(words)::value>(n, k, by_rest, gamma, scale).run(rows, first, picks, work);
  });
}

}  // namespace pyfast
