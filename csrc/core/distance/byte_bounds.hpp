// Distances in a byte each, rounded down: a search that reads them first needs few others.
#pragma once

#include <algorithm>
#include <vector>

#include "core/run/memory.hpp"
#include "core/run/views.hpp"
#include "simd/simd.hpp"

namespace pyfast {

// Threads may add different ones at once.
template <class T>
class ByteBounds {
 public:
  // Distances to point i keep their resolution up to 1.5 times `seconds`[i], or the median of those
  // if that is more; farther ones share a bound.
  ByteBounds(index rows, const std::vector<T>& seconds)
      : stride_((static_cast<index>(seconds.size()) + kLine - 1) / kLine * kLine),
        bounds_(big_array<unsigned char>(rows * stride_)),
        steps_(seconds.size()),
        scales_(seconds.size()) {
    std::vector<T> sorted = seconds;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    for (std::size_t i = 0; i < seconds.size(); ++i) {
      const double most = std::max(1.5 * static_cast<double>(seconds[i]), double{*middle});
      // Between the bounds, steps and scales are normal numbers of type T.
      constexpr bool kNarrow = sizeof(T) == sizeof(float);
      steps_[i] = std::min(std::max(most, kNarrow ? 1e-30 : 1e-290), kNarrow ? 1e37 : 1e300) / 255;
      scales_[i] = static_cast<T>((1 - 1e-6) / steps_[i]);
    }
  }

  const unsigned char* row(index row) const { return bounds_.get() + row * stride_; }

  // The distances of candidate `row` to points first .. first + count - 1, or bounds of them.
  void add(index row, index first, index count, const T* distances) {
    unsigned char* bounds = bounds_.get() + row * stride_ + first;
    if constexpr (sizeof(T) == sizeof(float)) {
      kernels_.to_bytes_f32(distances, scales_.data() + first, count, bounds);
    } else {
      kernels_.to_bytes_f64(distances, scales_.data() + first, count, bounds);
    }
  }

  // Distances of both points of each pair, or bounds of them.
  void add(const simd::DistanceTile<T>& tile) {
    if constexpr (sizeof(T) == sizeof(float)) {
      kernels_.tile_to_bytes_f32(tile, bytes());
    } else {
      kernels_.tile_to_bytes_f64(tile, bytes());
    }
  }

  // For kernels that see a matrix of distances anyway.
  simd::ByteRows<T> bytes() { return {scales_.data(), bounds_.get(), stride_}; }

  // At most any distance to point i that has this bound: the scale is short of 1 / step by more
  // than all rounding.
  double least(index i, unsigned char bound) const { return steps_[i] * bound; }

  // No distance to point i below `d` has a bound above this.
  unsigned char limit(index i, double d) const {
    return static_cast<unsigned char>(std::min(d * static_cast<double>(scales_[i]) + 1e-2, 255.0));
  }

 private:
  static constexpr index kLine = 64;  // a row begins on a cache line, which tiles fill at once

  index stride_;
  BigArray<unsigned char> bounds_;
  std::vector<double> steps_;
  std::vector<T> scales_;
  const simd::Kernels& kernels_ = simd::kernels();
};

}  // namespace pyfast
