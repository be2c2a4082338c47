#include "core/distance/product_distances.hpp"

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
// distance by one rounding of each of the two rows, so by sqrt(2 kApart) of it. One to spare. The
// root is off by half of that and its own; one more to spare.
double ProductDistances::error(index d) {
  const double product = 34 + static_cast<double>(d) / 32;
  const double of_square = (product + 2) * double{kApart} + 1 + 2 * 2.9 + 1;
  return (of_square / 2 + 2) * kFloatRounding;
}

// Any will do; the mean of some rows leaves norms as small as that of all.
template <class T>
void ProductDistances::find_centre(const GroupPoints<T>& points) {
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
bool ProductDistances::fill_panels(const GroupPoints<T>& points, Work& work) {
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
    simd::kernels().to_panel(rows_.row(0), width_, width_, panels_.row(p));
  }
  return true;
}

// Rows from .. to - 1 beside all before them, which take two panels at once, and among themselves;
// how many pairs are close, each row beside itself included.
index ProductDistances::measure_block(index from, index to, float* out, index stride,
                                      float* largest, Work& work) const {
  index close = 0;
  const auto measure = [&](index i, index j, index panels) {
    close += simd::kernels().panel_distances(
        {panels_.row(i / kWidth), panels_.row(j / kWidth), panels, width_, norms_.data() + i,
         norms_.data() + j, kApart, std::min(kWidth, to - i), std::min(panels * kWidth, count_ - j),
         out + i * stride + j, out + j * stride + i, stride, largest + j});
  };
  for (index j = 0; j < to; j += 2 * kWidth) {
    work.spend((to - from) * 2 * kWidth * width_ / 8);
    for (index i = std::max(from, j); i < to; i += kWidth) {
      measure(i, j, i >= j + 2 * kWidth ? 2 : 1);
      if (i == j + kWidth) measure(i, i, 1);
    }
  }
  return close;
}

template <class T>
index ProductDistances::measure(const GroupPoints<T>& points, float* out, index stride,
                                float* row_largest, Work& work) {
  count_ = points.count();
  width_ = runs_of(points.d, kWidth) * kWidth;
  find_centre(points);
  if (!fill_panels(points, work)) return -1;
  const auto padded = static_cast<std::ptrdiff_t>(norms_.size());
  largest_.assign(static_cast<std::size_t>(padded * work.threads()), 0.0f);
  const index block = std::max<index>(kBlockBytes / (4 * width_) / kWidth, 1) * kWidth;
  const index blocks = runs_of(count_, block), many = count_ * count_ / 2 / kFew + count_;
  std::atomic<index> close{0};
  work.each(blocks, static_cast<double>(count_ * count_ * width_) / 32,
            [&](index item, int worker, Work& own) {
              if (close > many) return;
              const index from = (blocks - 1 - item) * block;  // most first
              close += measure_block(from, std::min(from + block, count_), out, stride,
                                     largest_.data() + worker * padded, own);
            });
  if (close > many) return -1;
  for (index i = 0; i < count_; ++i) {
    out[i * stride + i] = 0;
    std::fill(out + i * stride + count_, out + (i + 1) * stride, 0.0f);
    row_largest[i] = largest_[static_cast<std::size_t>(i)];
    for (std::ptrdiff_t worker = 1; worker < work.threads(); ++worker) {
      row_largest[i] =
          std::max(row_largest[i], largest_[static_cast<std::size_t>(worker * padded + i)]);
    }
  }
  return close - count_;
}

template index ProductDistances::measure(const GroupPoints<float>&, float*, index, float*, Work&);
template index ProductDistances::measure(const GroupPoints<double>&, float*, index, float*, Work&);

}  // namespace pyfast
