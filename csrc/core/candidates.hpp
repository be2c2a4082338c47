// The vectors v_i that a greedy log-det selection chooses from: rows of a matrix, or differences of
// two of its rows that are never written down. Everything is float64, whatever the rows are; a sum
// over d numbers is cut into equal parts of at most kLongestPart, so that it gives the same bits
// for float and double rows, one row or many, and at every SIMD level.
#pragma once

#include "core/views.hpp"

namespace pyfast {

constexpr index kLongestPart = 576;

class Candidates {
 public:
  virtual ~Candidates() = default;
  virtual index count() const = 0;
  virtual index dims() const = 0;
  virtual double squared_norm(index i) const = 0;
  virtual void copy(index i, double* out) const = 0;

  // out[r * stride + c] = v_{rows[r]}^T w_c, where w_c is row c of `columns`, dims() numbers long.
  virtual void dots(const index* rows, index n_rows, const double* columns, index n_columns,
                    double* out, index stride) const = 0;
};

// v_i = x_i.
template <class T>
class RowCandidates final : public Candidates {
 public:
  explicit RowCandidates(MatrixView<T> x) : x_(x) {}
  index count() const override { return x_.rows; }
  index dims() const override { return x_.cols; }
  double squared_norm(index i) const override;
  void copy(index i, double* out) const override;
  void dots(const index* rows, index n_rows, const double* columns, index n_columns, double* out,
            index stride) const override;

 private:
  MatrixView<T> x_;
};

// v_i = pair_scales[i] (row_scales[a] x_a - row_scales[b] x_b) with (a, b) = pairs[2 i], pairs[2 i
// + 1].
template <class T>
class PairCandidates final : public Candidates {
 public:
  PairCandidates(MatrixView<T> x, const index* pairs, index n_pairs, const double* row_scales,
                 const double* pair_scales)
      : x_(x), pairs_(pairs), count_(n_pairs), row_scales_(row_scales), pair_scales_(pair_scales) {}
  index count() const override { return count_; }
  index dims() const override { return x_.cols; }
  double squared_norm(index i) const override;
  void copy(index i, double* out) const override;
  void dots(const index* rows, index n_rows, const double* columns, index n_columns, double* out,
            index stride) const override;

 private:
  MatrixView<T> x_;
  const index* pairs_;
  index count_;
  const double* row_scales_;
  const double* pair_scales_;
};

// x_i^T x_i.
template <class T>
double squared_norm(const T* x, index d);

}  // namespace pyfast
