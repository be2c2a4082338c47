// Powers of two beside points, distances and weights: exact, unless a number leaves its type's
// range. Points whose distances would be subnormal, of which a type holds few digits, are measured
// at another scale; so are weights whose products with distances would overflow or vanish.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/run/memory.hpp"
#include "core/run/views.hpp"

namespace pyfast {

// In two steps, because one factor may be out of range where the results are not.
template <class T>
void scale_by_power_of_two(T* numbers, index count, int exponent) {
  const T half = static_cast<T>(std::ldexp(1.0, exponent / 2));
  const T rest = static_cast<T>(std::ldexp(1.0, exponent - exponent / 2));
  for (index i = 0; i < count; ++i) numbers[i] = numbers[i] * half * rest;
}

// Points of type T times 2^shift, a copy; or, by find_shift(), the points themselves if their
// numbers are not all tiny.
template <class T>
class LiftedPoints {
 public:
  template <class From>
  LiftedPoints(MatrixView<From> x, int shift, Work& work)
      : shift_(shift), copy_(converted<T>(x, work)), view_{copy_.data(), x.rows, x.cols} {
    scale_by_power_of_two(copy_.data(), x.rows * x.cols, shift);
  }
  LiftedPoints(MatrixView<T> x, Work& work) : view_(x) {
    largest_ = largest_number(x, work);
    const T tiny = std::numeric_limits<T>::min() * static_cast<T>(0x1p60);
    if (largest_ == 0 || largest_ >= tiny) return;
    shift_ = -std::ilogb(largest_);
    largest_ = 2;
    copy_ = converted<T>(x, work);
    scale_by_power_of_two(copy_.data(), x.rows * x.cols, shift_);
    view_.data = copy_.data();
  }
  LiftedPoints(const LiftedPoints&) = delete;
  LiftedPoints& operator=(const LiftedPoints&) = delete;

  MatrixView<T> view() const { return view_; }
  int shift() const { return shift_; }
  // No distance of finite numbers exceeds two to this.
  int farthest() const {
    if (!(largest_ > 0)) return 0;
    const T finite = std::min(largest_, std::numeric_limits<T>::max());
    return std::ilogb(finite) + 3 + std::ilogb(static_cast<double>(view_.cols)) / 2;
  }

 private:
  static T largest_number(MatrixView<T> x, Work& work) {
    T largest = 0;
    for (index i = 0; i < x.rows; ++i) {
      work.spend(x.cols);
      const T* row = x.row(i);
      T lanes[16] = {};
      index t = 0;
      for (; t + 16 <= x.cols; t += 16) {
        for (index c = 0; c < 16; ++c) {
          const T size = std::abs(row[t + c]);
          lanes[c] = size > lanes[c] ? size : lanes[c];
        }
      }
      for (; t < x.cols; ++t) largest = std::max(largest, std::abs(row[t]));
      for (const T lane : lanes) largest = std::max(largest, lane);
    }
    return largest;
  }

  int shift_ = 0;
  T largest_ = 0;
  std::vector<T> copy_;
  MatrixView<T> view_;
};

// Weights times the power of two that keeps their products with distances up to 2^farthest, and
// sums of those, inside of double; the weights themselves if they are fine.
class ScaledWeights {
 public:
  ScaledWeights(const double* weights, index n, int farthest) : weights_(weights) {
    const double heaviest = *std::max_element(weights, weights + n);
    if (!(heaviest > 0)) return;
    const int weight = std::ilogb(heaviest);
    const int most = weight + farthest + std::ilogb(static_cast<double>(n)) + 1;
    if (most > 1020) {
      shift_ = 1020 - most;
    } else if (most < -60) {
      shift_ = std::min(960 - most, 1000 - weight);
    } else {
      return;
    }
    copy_.assign(weights, weights + n);
    scale_by_power_of_two(copy_.data(), n, shift_);
    weights_ = copy_.data();
  }
  ScaledWeights(const ScaledWeights&) = delete;
  ScaledWeights& operator=(const ScaledWeights&) = delete;

  const double* data() const { return weights_; }
  int shift() const { return shift_; }

 private:
  const double* weights_;
  std::vector<double> copy_;
  int shift_ = 0;
};

}  // namespace pyfast
