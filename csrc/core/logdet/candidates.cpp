#include "core/logdet/candidates.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "simd/simd.hpp"

namespace pyfast {

static_assert(kFloatRows == simd::kFloatDotsRows && kFloatColumns == simd::kFloatDotsColumns);

namespace {

simd::Block<float, double, double> block_for(const float*, const double*) {
  return simd::kernels().dot_mixed;
}
simd::Block<double, double, double> block_for(const double*, const double*) {
  return simd::kernels().dot_f64;
}
simd::Block<float, float, double> block_for(const float*, const float*) {
  return simd::kernels().dot_wide;
}

// Rows in twos, any distance apart, each whole: so the hardware sees long runs to read ahead of.
template <class T, class Column>
void gathered_dots(MatrixView<T> x, const index* rows, index n_rows, const Column* columns,
                   index n_columns, index column_stride, double* out, index stride) {
  const auto dots = block_for(x.data, columns);
  for (index r = 0; r < n_rows; r += 2) {
    const bool two = r + 1 < n_rows;
    const index apart = two ? (rows[r + 1] - rows[r]) * x.cols : 0;
    dots(x.row(rows[r]), two ? 2 : 1, apart, columns, n_columns, column_stride, x.cols,
         out + r * stride, stride);
  }
}

}  // namespace

void squared_norms(MatrixView<float> x, double* out) {
  simd::kernels().squared_norms_f32(x.data, x.rows, x.cols, x.cols, out);
}
void squared_norms(MatrixView<double> x, double* out) {
  simd::kernels().squared_norms_f64(x.data, x.rows, x.cols, x.cols, out);
}

template <class T>
void RowCandidates<T>::squared_norms(index first, index count, double* out) const {
  pyfast::squared_norms({x_.row(first), count, x_.cols}, out);
}

template <class T>
void RowCandidates<T>::copy(index i, double* out) const {
  std::copy_n(x_.row(i), x_.cols, out);
}

template <class T>
void RowCandidates<T>::dots(const index* rows, index n_rows, const double* columns, index n_columns,
                            double* out, index stride) const {
  gathered_dots(x_, rows, n_rows, columns, n_columns, x_.cols, out, stride);
}

template <class T>
bool RowCandidates<T>::narrow() const {
  return std::is_same_v<T, float>;
}

template <class T>
void RowCandidates<T>::copy(index i, float* out) const {
  std::copy_n(x_.row(i), x_.cols, out);
}

template <class T>
void RowCandidates<T>::dots(const index* rows, index n_rows, const float* columns, index n_columns,
                            index apart, double* out, index stride) const {
  if constexpr (std::is_same_v<T, float>) {
    gathered_dots(x_, rows, n_rows, columns, n_columns, apart, out, stride);
  }
}

template <class T>
void RowCandidates<T>::float_dots(const index* rows, index n_rows, const float* columns,
                                  index n_columns, index apart, float* out, index stride) const {
  if constexpr (std::is_same_v<T, float>) {
    const float* at[kFloatRows];
    for (index r = 0; r < n_rows; ++r) at[r] = x_.row(rows[r]);
    simd::kernels().float_dots(at, n_rows, columns, n_columns, apart, x_.cols, out, stride);
  }
}

// Term by term, since a difference of norms would lose pairs of nearly equal rows.
template <class T>
void PairCandidates<T>::squared_norms(index first, index count, double* out) const {
  double part[kPart];
  for (index i = first; i < first + count; ++i) {
    double sum = 0;
    for (index t = 0; t < x_.cols; t += kPart) {
      const index length = std::min(kPart, x_.cols - t);
      copy_part(i, t, length, part);
      double of_part;
      simd::kernels().squared_norms_f64(part, 1, length, length, &of_part);
      sum += of_part;
    }
    out[i - first] = sum;
    alike_[i] = row_lengths_ == nullptr || alike(i, sum);
  }
}

template <class T>
bool PairCandidates<T>::alike(index i, double square) const {
  const index a = pairs_[2 * i], b = pairs_[2 * i + 1];
  const double together = std::abs(pair_scales_[i]) *
                          (row_scales_[a] * row_lengths_[a] + row_scales_[b] * row_lengths_[b]);
  return together * together > 0.99 * kAlike * kAlike * square;  // all are rounded
}

template <class T>
void PairCandidates<T>::copy(index i, double* out) const {
  copy_part(i, 0, x_.cols, out);
}

template <class T>
void PairCandidates<T>::copy(index i, float* out) const {
  copy_part(i, 0, x_.cols, out);
}

template <class T>
template <class Out>
void PairCandidates<T>::copy_part(index i, index from, index length, Out* out) const {
  const T* a = x_.row(pairs_[2 * i]) + from;
  const T* b = x_.row(pairs_[2 * i + 1]) + from;
  const double of_a = row_scales_[pairs_[2 * i]], of_b = row_scales_[pairs_[2 * i + 1]];
  for (index t = 0; t < length; ++t) {
    out[t] = static_cast<Out>(
        pair_scales_[i] * (of_a * static_cast<double>(a[t]) - of_b * static_cast<double>(b[t])));
  }
}

// The two rows of a pair go through the kernel together; the difference is taken of their dots,
// unless they are alike.
template <class T>
void PairCandidates<T>::dots(const index* rows, index n_rows, const double* columns,
                             index n_columns, double* out, index stride) const {
  std::vector<double> both(static_cast<std::size_t>(2 * n_rows * n_columns));
  std::vector<index> ends;
  std::vector<double> difference;
  for (index r = 0; r < n_rows; ++r) {
    if (!alike_[rows[r]]) {
      ends.insert(ends.end(), {pairs_[2 * rows[r]], pairs_[2 * rows[r] + 1]});
      continue;
    }
    difference.resize(static_cast<std::size_t>(x_.cols));
    copy(rows[r], difference.data());
    simd::kernels().dot_f64(difference.data(), 1, x_.cols, columns, n_columns, x_.cols, x_.cols,
                            out + r * stride, stride);
  }
  gathered_dots(x_, ends.data(), static_cast<index>(ends.size()), columns, n_columns, x_.cols,
                both.data(), n_columns);
  const double* a = both.data();
  for (index r = 0; r < n_rows; ++r) {
    if (alike_[rows[r]]) continue;
    const index* pair = pairs_ + 2 * rows[r];
    const double of_a = row_scales_[pair[0]], of_b = row_scales_[pair[1]];
    const double* b = a + n_columns;
    for (index c = 0; c < n_columns; ++c) {
      out[r * stride + c] = pair_scales_[rows[r]] * (of_a * a[c] - of_b * b[c]);
    }
    a += 2 * n_columns;
  }
}

template class RowCandidates<float>;
template class RowCandidates<double>;
template class PairCandidates<float>;
template class PairCandidates<double>;

}  // namespace pyfast
