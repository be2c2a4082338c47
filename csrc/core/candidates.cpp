#include "core/candidates.hpp"

#include <algorithm>
#include <vector>

#include "simd/simd.hpp"

namespace pyfast {

namespace {

simd::Block<float, double, double> block_for(const float*, const double*) {
  return simd::kernels().dot_mixed;
}
simd::Block<double, double, double> block_for(const double*, const double*) {
  return simd::kernels().dot_f64;
}
simd::Block<float, float, float> block_for(const float*, const float*) {
  return simd::kernels().dot_f32;
}

// Rows in twos, any distance apart, each whole: so the hardware sees long runs to read ahead of.
template <class T, class Column, class Sum>
void gathered_dots(MatrixView<T> x, const index* rows, index n_rows, const Column* columns,
                   index n_columns, Sum* out, index stride) {
  const auto dots = block_for(x.data, columns);
  for (index r = 0; r < n_rows; r += 2) {
    const bool two = r + 1 < n_rows;
    const index apart = two ? (rows[r + 1] - rows[r]) * x.cols : 0;
    dots(x.row(rows[r]), two ? 2 : 1, apart, columns, n_columns, x.cols, x.cols, out + r * stride,
         stride);
  }
}

}  // namespace

template <class T>
double squared_norm(const T* x, index d) {
  return simd::dot(x, x, d);
}

template <class T>
double RowCandidates<T>::squared_norm(index i) const {
  return pyfast::squared_norm(x_.row(i), x_.cols);
}

template <class T>
void RowCandidates<T>::copy(index i, double* out) const {
  std::copy_n(x_.row(i), x_.cols, out);
}

template <class T>
void RowCandidates<T>::dots(const index* rows, index n_rows, const double* columns, index n_columns,
                            double* out, index stride) const {
  gathered_dots(x_, rows, n_rows, columns, n_columns, out, stride);
}

template <>
bool RowCandidates<float>::has_rough() const {
  return true;
}

template <>
void RowCandidates<float>::rough_dots(const index* rows, index n_rows, const float* columns,
                                      index n_columns, float* out, index stride) const {
  gathered_dots(x_, rows, n_rows, columns, n_columns, out, stride);
}

template <>
bool RowCandidates<double>::has_rough() const {
  return false;
}

template <>
void RowCandidates<double>::rough_dots(const index*, index, const float*, index, float*,
                                       index) const {}

// Term by term, since a difference of norms would lose pairs of nearly equal rows.
template <class T>
double PairCandidates<T>::squared_norm(index i) const {
  double part[kPart];
  const T* a = x_.row(pairs_[2 * i]);
  const T* b = x_.row(pairs_[2 * i + 1]);
  const double of_a = row_scales_[pairs_[2 * i]], of_b = row_scales_[pairs_[2 * i + 1]];
  double sum = 0;
  for (index t = 0; t < x_.cols; t += kPart) {
    const index length = std::min(kPart, x_.cols - t);
    for (index s = 0; s < length; ++s) {
      part[s] = pair_scales_[i] *
                (of_a * static_cast<double>(a[t + s]) - of_b * static_cast<double>(b[t + s]));
    }
    sum += simd::dot(part, part, length);
  }
  return sum;
}

template <class T>
void PairCandidates<T>::copy(index i, double* out) const {
  const T* a = x_.row(pairs_[2 * i]);
  const T* b = x_.row(pairs_[2 * i + 1]);
  const double of_a = row_scales_[pairs_[2 * i]], of_b = row_scales_[pairs_[2 * i + 1]];
  for (index t = 0; t < x_.cols; ++t) {
    out[t] =
        pair_scales_[i] * (of_a * static_cast<double>(a[t]) - of_b * static_cast<double>(b[t]));
  }
}

// The two rows of a pair go through the kernel together; the difference is taken of their dots.
template <class T>
void PairCandidates<T>::dots(const index* rows, index n_rows, const double* columns,
                             index n_columns, double* out, index stride) const {
  std::vector<double> both(static_cast<std::size_t>(2 * n_rows * n_columns));
  std::vector<index> ends;
  for (index r = 0; r < n_rows; ++r) {
    ends.insert(ends.end(), {pairs_[2 * rows[r]], pairs_[2 * rows[r] + 1]});
  }
  gathered_dots(x_, ends.data(), 2 * n_rows, columns, n_columns, both.data(), n_columns);
  for (index r = 0; r < n_rows; ++r) {
    const index* pair = pairs_ + 2 * rows[r];
    const double of_a = row_scales_[pair[0]], of_b = row_scales_[pair[1]];
    const double* a = both.data() + 2 * r * n_columns;
    const double* b = a + n_columns;
    for (index c = 0; c < n_columns; ++c) {
      out[r * stride + c] = pair_scales_[rows[r]] * (of_a * a[c] - of_b * b[c]);
    }
  }
}

template double squared_norm<float>(const float*, index);
template double squared_norm<double>(const double*, index);
template class RowCandidates<float>;
template class RowCandidates<double>;
template class PairCandidates<float>;
template class PairCandidates<double>;

}  // namespace pyfast
