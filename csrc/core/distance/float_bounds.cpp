#include "core/distance/float_bounds.hpp"

#include <algorithm>
#include <cmath>

namespace pyfast {

namespace {

// Of distances between rows and the first: closer pairs are measured exactly.
constexpr float kShrunk = 8;

constexpr index kProductsFrom = 192;  // points; fewer are as fast by differences

index padded(index count, index to) { return (count + to - 1) / to * to; }

// Rounds rows to float, less `centre` if there is one; without one, whether they hold the numbers.
bool narrow(const std::vector<const double*>& rows, index d, const double* centre,
            AlignedRows<float>& to, index width, Work& work) {
  const index count = static_cast<index>(rows.size());
  const index some = Work::fitting(d);
  bool exact = true;
  for (index i = 0; i < count && exact; i += some) {
    const index piece = std::min(some, count - i);
    work.spend(piece * d);
    exact = simd::kernels().narrow(rows.data() + i, piece, d, centre, to.row(i), width);
  }
  return exact;
}

}  // namespace

// A square of float rows is off by one rounding of each difference, twice, and one of each addition
// on the way of a number to the total; its root by half of that and one more. Rows of double that
// float cannot hold are rounded after taking off the first row, which is off by one rounding of
// either row's distance to the first: up to kShrunk of them for pairs not closer than by that
// factor.
template <class T>
bool FloatBounds<T>::measure(const GroupPoints<T>& points, bool rough, const simd::Ahead& ahead,
                             Work& work) {
  points_ = &points;
  const index m = points.count(), d = points.d, width = padded(d, 16);
  stride_ = padded(m, AlignedRows<float>::kLine);
  if (stride_ % 256 == 0) stride_ += 16;  // or all rows compete for the same few cache lines
  if (m * stride_ > room_) distances_ = big_array<float>(room_ = m * stride_);
  row_largest_.resize(static_cast<std::size_t>(m));
  rough_ = false;
  if (rough && m >= kProductsFrom) {
    const index close =
        products_.measure(points, distances_.get(), stride_, row_largest_.data(), work);
    rough_ = close >= 0;
    error_ = ProductDistances::error(d);
    if (rough_) return close == 0 || measure_odd_pairs(work);
  }
  const bool exact = narrow_rows(width, work);
  pair_squares(rows_.data(), m, width, distances_.get(), stride_, ahead, work);
  const bool good = take_roots();
  const double additions =
      static_cast<double>(std::min<index>(d, 1024)) / 16 + static_cast<double>(d) / 1024 + 5;
  error_ = ((additions + 2) / 2 + 1 + (exact ? 0 : kShrunk)) * kFloatRounding;
  return (exact || measure_close_pairs(work)) && (good || measure_odd_pairs(work));
}

// Whether all of them are usual numbers.
template <class T>
bool FloatBounds<T>::take_roots() {
  const index m = points_->count();
  return simd::kernels().roots(distances_.get(), m, stride_, row_largest_.data());
}

// Rows of float, their length a multiple of 16. Whether they hold the numbers as given.
template <class T>
bool FloatBounds<T>::narrow_rows(index width, Work& work) {
  const index m = points_->count(), d = points_->d;
  bool exact = true;
  rows_.clear();
  if constexpr (sizeof(T) == sizeof(float)) {
    if (width == d) rows_ = points_->rows;
  }
  if (rows_.empty()) {
    narrow_.resize(m, width, work);
    for (index i = 0; i < m; ++i) rows_.push_back(narrow_.row(i));
    if constexpr (sizeof(T) == sizeof(float)) {
      for (index i = 0; i < m; ++i) {
        float* to = narrow_.row(i);
        work.spend(d);
        std::fill(std::copy_n(points_->rows[i], d, to), to + width, 0.0f);
      }
    } else {
      exact = narrow(points_->rows, d, nullptr, narrow_, width, work);
      if (!exact) narrow(points_->rows, d, points_->rows[0], narrow_, width, work);
    }
  }
  rows_.resize(static_cast<std::size_t>(m + simd::kSpareRows), rows_[0]);
  return exact;
}

// False if the distance is out of float's comfortable range.
template <class T>
bool FloatBounds<T>::measure_exactly(index i, index j, Work& work) {
  work.spend(points_->d);
  const double exact = points_->distance(i, j);
  if (exact != 0 && !(exact > 1e-30 && exact < 1e30)) return false;
  distances_[i * stride_ + j] = distances_[j * stride_ + i] = static_cast<float>(exact);
  return true;
}

template <class T>
bool FloatBounds<T>::measure_close_pairs(Work& work) {
  for (index i = 1; i < points_->count(); ++i) {
    for (index j = 1; j < i; ++j) {
      if (row(i)[j] * kShrunk > row(0)[i] + row(0)[j]) continue;
      if (!measure_exactly(i, j, work)) return false;
    }
  }
  return true;
}

template <class T>
bool FloatBounds<T>::measure_odd_pairs(Work& work) {
  const index m = points_->count();
  for (index i = 1; i < m; ++i) {
    for (index j = 0; j < i; ++j) {
      if (row(i)[j] >= 1e-14f && row(i)[j] <= 3e18f) continue;
      if (!measure_exactly(i, j, work)) return false;
    }
  }
  for (index i = 0; i < m; ++i) row_largest_[i] = *std::max_element(row(i), row(i) + m);
  return true;
}

// Of the pairs that float cannot tell from its largest.
template <class T>
double FloatBounds<T>::largest() const {
  const float most = *std::max_element(row_largest_.begin(), row_largest_.end());
  const auto enough = static_cast<float>(static_cast<double>(most) * (1 - 3 * error_));
  double largest = 0;
  if (most == 0) return largest;
  for (index i = 0; i < points_->count(); ++i) {
    if (row_largest_[i] < enough) continue;
    for (index j = i + 1; j < points_->count(); ++j) {
      if (row(i)[j] >= enough) largest = std::max(largest, points_->distance(i, j));
    }
  }
  return largest;
}

template class FloatBounds<float>;
template class FloatBounds<double>;

}  // namespace pyfast
