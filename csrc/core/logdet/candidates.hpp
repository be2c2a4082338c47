// The vectors v_i that a greedy log-det selection chooses from: rows of a matrix, or differences of
// two of its rows that are never written down. Values are float64, whatever the rows are, summed in
// the order of simd.hpp: the same bits for float and double rows and at every SIMD level.
#pragma once

#include <vector>

#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

constexpr index kPart = 512;  // simd.hpp's chunk of a double sum

// |float dot - dot| <= float_dot_error(d) |v| |w| + d kFloatLeast, in exact arithmetic: w is
// rounded, and then a product meets at most 75 + d / 256 roundings (simd.hpp). A few more are to
// spare.
constexpr double float_dot_error(index d) {
  return (80 + static_cast<double>(d) / 250) / (1 << 24);
}
constexpr index kFloatRows = 16, kFloatColumns = 12;  // the most of one call
constexpr double kFloatLeast = 0x1.0p-124;            // floats that are flushed to zero

// |sum of simd.hpp - dot| <= roundings 2^-53 |v| |w| unless a product is flushed to zero.
constexpr double sum_roundings(index d) {
  return 5 + static_cast<double>(d < 512 ? d / 8 : 64) + static_cast<double>(d / kPart);
}

class Candidates {
 public:
  virtual ~Candidates() = default;
  virtual index count() const = 0;
  virtual index dims() const = 0;

  // Of the candidates first .. first + count - 1.
  virtual void squared_norms(index first, index count, double* out) const = 0;
  virtual void copy(index i, double* out) const = 0;
  virtual void copy(index i, float* out) const = 0;  // each number rounded

  // The dots and squared norms below are off by at most this times 2^-53 |v| |w|, v and w being
  // what copy() gives.
  virtual double roundings() const = 0;

  // Whether the doubles of copy() are v_i itself.
  virtual bool whole() const { return true; }
  // What they lack of it, if anything: dims() numbers to be added, there after
  // refine(), which one thread calls. Asked for only where doubles do not do.
  virtual void refine(Work&) const {}
  virtual const double* rest(index) const { return nullptr; }

  // out[r * stride + c] = v_{rows[r]}^T w_c, where w_c is row c of `columns`, dims() numbers long.
  virtual void dots(const index* rows, index n_rows, const double* columns, index n_columns,
                    double* out, index stride) const = 0;

  // Whether the vectors are floats. Then columns may be too, `apart` numbers from one to the next;
  // `float_dots` are the cheaper products in float, of at most kFloatRows and kFloatColumns.
  virtual bool narrow() const { return false; }
  virtual void dots(const index*, index, const float*, index, index, double*, index) const {}
  virtual void float_dots(const index*, index, const float*, index, index, float*, index) const {}
};

// v_i = x_i.
template <class T>
class RowCandidates final : public Candidates {
 public:
  explicit RowCandidates(MatrixView<T> x) : x_(x) {}
  index count() const override { return x_.rows; }
  index dims() const override { return x_.cols; }
  void squared_norms(index first, index count, double* out) const override;
  void copy(index i, double* out) const override;
  double roundings() const override { return sum_roundings(x_.cols); }
  void dots(const index* rows, index n_rows, const double* columns, index n_columns, double* out,
            index stride) const override;
  bool narrow() const override;
  void copy(index i, float* out) const override;
  void dots(const index* rows, index n_rows, const float* columns, index n_columns, index apart,
            double* out, index stride) const override;
  void float_dots(const index* rows, index n_rows, const float* columns, index n_columns,
                  index apart, float* out, index stride) const override;

 private:
  MatrixView<T> x_;
};

// v_i = pair_scales[i] (row_scales[a] x_a - row_scales[b] x_b) with (a, b) = pairs[2 i], pairs[2 i
// + 1], rounded to double at each step; row_lengths[a] = |x_a|, to a few digits,
// spares subtracting the rows of most pairs; it may be null.
template <class T>
class PairCandidates final : public Candidates {
 public:
  PairCandidates(MatrixView<T> x, const index* pairs, index n_pairs, const double* row_scales,
                 const double* pair_scales, const double* row_lengths)
      : x_(x),
        pairs_(pairs),
        count_(n_pairs),
        row_scales_(row_scales),
        pair_scales_(pair_scales),
        row_lengths_(row_lengths),
        alike_(static_cast<std::size_t>(n_pairs)) {}
  index count() const override { return count_; }
  index dims() const override { return x_.cols; }
  void squared_norms(index first, index count, double* out) const override;
  void copy(index i, double* out) const override;
  void copy(index i, float* out) const override;
  double roundings() const override { return kAlike * (6 + sum_roundings(x_.cols)); }
  void dots(const index* rows, index n_rows, const double* columns, index n_columns, double* out,
            index stride) const override;
  using Candidates::dots;

 private:
  // Rows together this much longer than their difference are subtracted first: a difference of
  // their dots would lose digits.
  static constexpr double kAlike = 4;

  template <class Out>
  void copy_part(index i, index from, index length, Out* out) const;
  bool alike(index i, double square) const;

  MatrixView<T> x_;
  const index* pairs_;
  index count_;
  const double* row_scales_;
  const double* pair_scales_;
  const double* row_lengths_;
  mutable std::vector<char> alike_;  // of each pair, known from its squared norm on
};

// out[i] = x_i^T x_i.
void squared_norms(MatrixView<float> x, double* out);
void squared_norms(MatrixView<double> x, double* out);

}  // namespace pyfast
