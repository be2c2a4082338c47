#include "core/distance/product_squares.hpp"

#include <algorithm>
#include <atomic>

#include "core/distance/exact.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr index kWidth = simd::kPanelWidth;
constexpr float kApart = 4;             // times a square, at least the sum of its two norms
constexpr index kFew = 64;              // one pair of so many may be close
constexpr index kBlockBytes = 1 << 18;  // of panels: they stay in the second-level cache

index runs_of(index count, index length) { return (count + length - 1) / length; }

}  // namespace

// In roundings. Of the sum of two norms, at most kApart squares: those of the product (simd.hpp),
// of the norms and of their sum. Of the square: its own, and those of centring, which move a
// distance by one rounding of each of the two rows, so by sqrt(2 kApart) of it. One to spare.
double ProductSquares::error(index d) {
  const double product = 34 + static_cast<double>(d) / 32;
  return ((product + 2) * double{kApart} + 1 + 2 * 2.9 + 1) * kFloatRounding;
}

// Any will do; the mean of some rows leaves norms as small as that of all.
template <class T>
void ProductSquares::find_centre(const GroupPoints<T>& points) {
  constexpr index kEnough = 64;
  const index step = runs_of(count_, kEnough), some = runs_of(count_, step);
  centre_.assign(static_cast<std::size_t>(points.d), 0.0f);
  for (index i = 0; i < count_; i += step) {
    const T* row = points.rows[i];
    for (index t = 0; t < points.d; ++t) centre_[t] += static_cast<float>(row[t]);
  }
  for (float& number : centre_) number /= static_cast<float>(some);
}

// And the norms; whether all are in range.
template <class T>
bool ProductSquares::fill_panels(const GroupPoints<T>& points, Work& work) {
  const index panels = runs_of(count_, kWidth), d = points.d;
  norms_.assign(static_cast<std::size_t>(panels * kWidth), 0.0f);
  panels_.resize(panels, width_ * kWidth, work);
  rows_.resize(kWidth, width_, work);
  for (index p = 0; p < panels; ++p) {
    work.spend(4 * kWidth * width_);
    const index first = p * kWidth, rows = std::min(kWidth, count_ - first);
    std::fill(rows_.row(0), rows_.row(kWidth), 0.0f);
    for (index r = 0; r < rows; ++r) {
      const T* from = points.rows[first + r];
      float* to = rows_.row(r);
      for (index t = 0; t < d; ++t) to[t] = static_cast<float>(from[t] - T{centre_[t]});
    }
    double norms[kWidth];
    simd::kernels().squared_norms_f32(rows_.row(0), rows, width_, width_, norms);
    for (index r = 0; r < rows; ++r) {
      if (!(norms[r] > 1e-26 && norms[r] < 1e36)) return false;
      norms_[first + r] = static_cast<float>(norms[r]);
    }
    float* panel = panels_.row(p);
    for (index c = 0; c < kWidth; ++c) {
      const float* row = rows_.row(c);
      for (index t = 0; t < width_; ++t) panel[t * kWidth + c] = row[t];
    }
  }
  return true;
}

// Rows from .. to - 1 beside all before them; how many pairs are close, each row beside itself
// included.
index ProductSquares::measure_block(index from, index to, float* out, index stride,
                                    Work& work) const {
  index close = 0;
  for (index j = 0; j < to; j += kWidth) {
    work.spend((to - from) * kWidth * width_ / 8);
    for (index i = std::max(from, j); i < to; i += kWidth) {
      close += simd::kernels().panel_squares(
          {panels_.row(i / kWidth), panels_.row(j / kWidth), width_, norms_.data() + i,
           norms_.data() + j, kApart, std::min(kWidth, to - i), std::min(kWidth, count_ - j),
           out + i * stride + j, out + j * stride + i, stride});
    }
  }
  return close;
}

template <class T>
bool ProductSquares::measure(const GroupPoints<T>& points, float* out, index stride, Work& work) {
  count_ = points.count();
  width_ = runs_of(points.d, kWidth) * kWidth;
  find_centre(points);
  if (!fill_panels(points, work)) return false;
  const index block = std::max<index>(kBlockBytes / (4 * width_) / kWidth, 1) * kWidth;
  const index blocks = runs_of(count_, block), many = count_ * count_ / 2 / kFew + count_;
  std::atomic<index> close{0};
  work.each(blocks, static_cast<double>(count_ * count_ * width_) / 32,
            [&](index item, int, Work& own) {
              if (close > many) return;
              const index from = (blocks - 1 - item) * block;  // most first
              close += measure_block(from, std::min(from + block, count_), out, stride, own);
            });
  if (close > many) return false;
  for (index i = 0; i < count_; ++i) {
    out[i * stride + i] = 0;
    std::fill(out + i * stride + count_, out + (i + 1) * stride, 0.0f);
  }
  return true;
}

template bool ProductSquares::measure(const GroupPoints<float>&, float*, index, Work&);
template bool ProductSquares::measure(const GroupPoints<double>&, float*, index, Work&);

}  // namespace pyfast
