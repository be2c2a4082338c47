#include "core/distance/gemm_bounds.hpp"

#include <algorithm>
#include <cmath>

#include "core/distance/exact.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr index kWidth = simd::kPanelWidth;

// Runs of kWidth that hold `count`.
index panels_for(index count) { return (count + kWidth - 1) / kWidth; }

}  // namespace

template <class T>
GemmBounds<T>::GemmBounds(MatrixView<T> x, Work& work)
    : x_(x), width_(panels_for(x.cols) * kWidth) {
  const auto d = static_cast<std::size_t>(x.cols);
  std::vector<double> sums(d);
  for (index i = 0; i < x.rows; ++i) {
    work.spend(x.cols);
    const T* row = x.row(i);
    for (index t = 0; t < x.cols; ++t) sums[static_cast<std::size_t>(t)] += double{row[t]};
  }
  for (const double sum : sums)
    centre_.push_back(static_cast<T>(sum / static_cast<double>(x.rows)));
  std::vector<float> row(d);
  for (index i = 0; i < x.rows; ++i) {
    work.spend(2 * x.cols);
    centre_row(i, row.data());
    double squared = 0;
    simd::kernels().squared_norms_f32(row.data(), 1, x.cols, x.cols, &squared);
    norms_.push_back(static_cast<float>(squared));
  }
  // Roundings, of which each is half an epsilon: those of the product (simd.hpp), 16 for centring
  // the rows, their norms and the sum, and of the distance itself (euclidean.hpp) up to 4 times as
  // many, because the square of a sum of two norms is up to twice that of their squares.
  const double wide = static_cast<double>(x.cols);
  const double roundings = (260 + wide / 256) + 16 + 4 * (45 + wide / 1000);
  slack_ = static_cast<float>(roundings * kFloatRounding);
}

template <class T>
void GemmBounds<T>::centre_row(index i, float* to) const {
  const T* row = x_.row(i);
  for (index t = 0; t < x_.cols; ++t) to[t] = static_cast<float>(row[t] - centre_[t]);
}

template <class T>
GemmBounds<T>::Strip::Strip(const GemmBounds& bounds, index top, index count, Work& work)
    : bounds_(bounds), top_(top), count_(count) {
  const index d = bounds.x_.cols;
  panels_.resize(panels_for(count), bounds.width_ * kWidth, work);
  rows_.resize(kWidth, bounds.width_, work);
  for (index p = 0; p < panels_for(count); ++p) {
    work.spend(4 * kWidth * d);
    std::fill(rows_.row(0), rows_.row(kWidth), 0.0f);
    for (index c = p * kWidth; c < std::min((p + 1) * kWidth, count); ++c) {
      bounds.centre_row(top + c, rows_.row(c % kWidth));
    }
    simd::kernels().to_panel(rows_.row(0), bounds.width_, bounds.width_, panels_.row(p));
  }
}

template <class T>
index GemmBounds<T>::Strip::measure(index left, index count, T* out, index stride, Work& work) {
  const index d = bounds_.x_.cols, width = bounds_.width_;
  work.spend(count * count_ * d / 2);
  rows_.resize(count, width, work);
  dots_.resize(count, panels_for(count_) * kWidth, work);
  for (index i = 0; i < count; ++i) bounds_.centre_row(left + i, rows_.row(i));
  const index panels = panels_for(count_);
  simd::kernels().panel_dots(rows_.row(0), count, width, panels_.row(0), panels, width * kWidth, d,
                             dots_.row(0), panels * kWidth);
  index unknown = 0;
  for (index i = 0; i < count; ++i) {
    const float* dots = dots_.row(i);
    T* row = out + i * stride;
    int odd = 0;
    const float own = bounds_.norms_[left + i], *norms = bounds_.norms_.data() + top_;
    for (index j = 0; j < count_; ++j) {
      const float both = own + norms[j], slack = bounds_.slack_ * both;
      const float square = both - 2 * dots[j] - slack;
      const int known = static_cast<int>(square > 64 * slack) & static_cast<int>(square > 1e-28f) &
                        static_cast<int>(square < 1e37f);
      const float root = std::sqrt(std::max(square, 0.0f));
      row[j] = static_cast<T>(known != 0 ? root : -1.0f);
      odd += 1 - known;
    }
    unknown += odd;
  }
  return unknown <= std::max(count * count_ / 16, std::max(count, count_)) ? unknown : -1;
}

template class GemmBounds<float>;
template class GemmBounds<double>;

}  // namespace pyfast
