#include "core/best_subset.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "core/wide.hpp"
#include "core/wide_residuals.hpp"

namespace pyfast {

namespace {

template <int N>
class Search {
 public:
  Search(index n, index k, double gamma, double scale)
      : n_(n),
        k_(k),
        ridge_(Wide<N>(gamma) * Wide<N>(scale).inverse()),
        inverse_ridge_(ridge_.inverse()),
        products_(static_cast<std::size_t>(n * n)),
        levels_(static_cast<std::size_t>(k)),
        path_(static_cast<std::size_t>(k)) {
    for (Level& level : levels_) {
      level.z.resize(static_cast<std::size_t>(n));
      level.rho.resize(static_cast<std::size_t>(n));
    }
  }

  void run(const std::vector<double>& rows, MatrixView<double> before, index* picks, Token& token) {
    multiply(rows, before, token);
    for (index j = 0; j < n_; ++j) levels_[0].rho[j] = product(j, j);
    extend(0, 0, 0.0, picks, token);
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
  void multiply(const std::vector<double>& rows, MatrixView<double> before, Token& token) {
    const index total = before.rows + n_, d = before.cols;
    std::vector<Doubles> all;
    for (index i = 0; i < total; ++i) {
      all.emplace_back(i < before.rows ? before.row(i) : rows.data() + (i - before.rows) * d, d);
    }
    for (index i = 0; i < n_; ++i) {
      for (index j = 0; j <= i; ++j) {
        token.spend(8 * d);
        product(i, j) = dot<N>(all[before.rows + i], all[before.rows + j]);
      }
    }
    std::vector<std::vector<Wide<N>>> factor(static_cast<std::size_t>(total));
    std::vector<Wide<N>> pivots;
    for (index i = 0; i < total; ++i) {
      std::vector<Wide<N>>& z = factor[i];
      for (index q = 0; q < std::min(i, before.rows); ++q) {
        token.spend(8 * d + 32 * q);
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
        token.spend(64 * before.rows);
        for (index s = 0; s < before.rows; ++s) {
          product(i, j) =
              product(i, j) - factor[before.rows + i][s] * factor[before.rows + j][s] * pivots[s];
        }
      }
    }
  }

  // Brings candidate j past the first t of the path, and before it those that come before it.
  void bring_up(index j, index t, Token& token) {
    for (index s = 0; s < t; ++s) {
      Level& level = levels_[s];
      for (; level.known <= j; ++level.known) {
        token.spend(32 * (s + 2));
        Wide<N>& z = level.z[level.known] = product(level.known, path_[s]);
        for (index q = 0; q < s; ++q) z = z - levels_[q].z[level.known] * level.row[q];
        levels_[s + 1].rho[level.known] = level.rho[level.known] - z * z * level.inverse_pivot;
      }
    }
  }

  // Goes through all that begin with the first t of path_, whose value is `value`.
  void extend(index t, index from, double value, index* picks, Token& token) {
    Level& level = levels_[t];
    const index until = n_ - (k_ - 1 - t);  // so many have to follow
    for (index i = from; i < until; ++i) {
      bring_up(i, t, token);
      path_[t] = i;
      const double with = value + std::log1p((level.rho[i] * inverse_ridge_).value());
      if (t + 1 < k_) {
        level.inverse_pivot = (ridge_ + level.rho[i]).inverse();
        level.row.clear();
        for (index s = 0; s < t; ++s) {
          level.row.push_back(levels_[s].z[i] * levels_[s].inverse_pivot);
        }
        level.known = i + 1;
        extend(t + 1, i + 1, with, picks, token);
      } else if (best_ < 0 || with > best_ * (1 + kSubsetTie)) {
        best_ = with;
        std::copy(path_.begin(), path_.end(), picks);
      }
    }
  }

  index n_, k_;
  Wide<N> ridge_, inverse_ridge_;
  std::vector<Wide<N>> products_;
  std::vector<Level> levels_;
  std::vector<index> path_;
  double best_ = -1;
};

}  // namespace

void best_subset(const Candidates& candidates, index k, double gamma, double scale,
                 MatrixView<double> before, index* picks, Token& token) {
  const index n = candidates.count(), d = candidates.dims();
  std::vector<double> rows(static_cast<std::size_t>(n * d));
  double longest = 1;
  for (index i = 0; i < n + before.rows; ++i) {
    token.spend(8 * d);
    if (i < n) candidates.copy(i, rows.data() + i * d);
    const double length =
        wide_length(i < n ? rows.data() + i * d : before.row(i - n), d, gamma, scale);
    if (!std::isfinite(length))
      throw std::range_error("a squared length times scale / gamma overflows");
    longest = std::max(longest, length);
  }
  const MatrixView<double> first{before.data, before.rows, d};
  const double bits = std::log2(longest) + std::log2(static_cast<double>(k + before.rows)) + 2;
  with_words(bits, [&](auto words) {
    Search<decltype(words)::value>(n, k, gamma, scale).run(rows, first, picks, token);
  });
}

}  // namespace pyfast
