#include "core/candidates.hpp"

#include <algorithm>
#include <vector>

#include "simd/simd.hpp"

namespace pyfast {

namespace {

// As many columns as stay in the first-level cache, a part of a row long, while rows stream by.
constexpr index kColumnsAtOnce = 6;

index part_length(index d) {
  constexpr index kLanes = 8;
  const index parts = (d + kLongestPart - 1) / kLongestPart;
  const index longest = (d + parts - 1) / parts;
  return (longest + kLanes - 1) / kLanes * kLanes;
}

simd::Block<float, double, double> dot_block(const float*) { return simd::kernels().dot_mixed; }
simd::Block<double, double, double> dot_block(const double*) { return simd::kernels().dot_f64; }

// out[r][c] += a_r^T w_c over one part of the rows, for two rows a_r any distance apart.
template <class T>
struct TwoRows {
  const T* first;
  index apart;
  index count;  // 1 or 2
};

template <class T>
void add_part(const TwoRows<T>& a, const double* columns, index n_columns, index d, index length,
              double* out, index stride) {
  double sums[2 * kColumnsAtOnce];
  dot_block(a.first)(a.first, a.count, a.apart, columns, n_columns, d, length, sums,
                     kColumnsAtOnce);
  for (index r = 0; r < a.count; ++r) {
    for (index c = 0; c < n_columns; ++c) out[r * stride + c] += sums[r * kColumnsAtOnce + c];
  }
}

// All dots of the rows two_rows(r), r = 0, 2, 4 .. below n_rows, with the columns.
template <class TwoRowsOf>
void all_dots(index n_rows, const double* columns, index n_columns, index d, double* out,
              index stride, TwoRowsOf&& two_rows) {
  for (index r = 0; r < n_rows; ++r) std::fill_n(out + r * stride, n_columns, 0.0);
  const index longest = part_length(d);
  for (index t = 0; t < d; t += longest) {
    const index length = std::min(longest, d - t);
    for (index c = 0; c < n_columns; c += kColumnsAtOnce) {
      const index n = std::min(kColumnsAtOnce, n_columns - c);
      for (index r = 0; r < n_rows; r += 2) {
        auto rows = two_rows(r);
        rows.first += t;
        add_part(rows, columns + c * d + t, n, d, length, out + r * stride + c, stride);
      }
    }
  }
}

}  // namespace

template <class T>
double squared_norm(const T* x, index d) {
  const index longest = part_length(d);
  double sum = 0;
  for (index t = 0; t < d; t += longest) {
    sum += simd::dot(x + t, x + t, std::min(longest, d - t));
  }
  return sum;
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
  all_dots(n_rows, columns, n_columns, x_.cols, out, stride, [&](index r) {
    const index next = r + 1 < n_rows ? rows[r + 1] : rows[r];
    return TwoRows<T>{x_.row(rows[r]), (next - rows[r]) * x_.cols, r + 1 < n_rows ? 2 : 1};
  });
}

// Term by term, since a difference of norms would lose pairs of nearly equal rows.
template <class T>
double PairCandidates<T>::squared_norm(index i) const {
  double part[kLongestPart + 8];
  const T* a = x_.row(pairs_[2 * i]);
  const T* b = x_.row(pairs_[2 * i + 1]);
  const double of_a = row_scales_[pairs_[2 * i]], of_b = row_scales_[pairs_[2 * i + 1]];
  const index longest = part_length(x_.cols);
  double sum = 0;
  for (index t = 0; t < x_.cols; t += longest) {
    const index length = std::min(longest, x_.cols - t);
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
  all_dots(2 * n_rows, columns, n_columns, x_.cols, both.data(), n_columns, [&](index r) {
    const index* pair = pairs_ + 2 * rows[r / 2];
    return TwoRows<T>{x_.row(pair[0]), (pair[1] - pair[0]) * x_.cols, 2};
  });
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
