// Numbers just below the distances between many points, by matrix products: about twice as fast as
// the distances themselves, and all that a first look needs (byte_bounds.hpp).
//
// ||x - y||^2 = ||x||^2 + ||y||^2 - 2 x.y, of float rows less their mean, is off by the roundings
// of the three terms. Taking off as much as they could add leaves a number that the distance does
// not fall below; where that is a large part of it, the points are too close to tell.
#pragma once

#include <vector>

#include "core/run/memory.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

template <class T>
class GemmBounds {
 public:
  // Wider rows leave the second-level cache, and gain less.
  static constexpr index kWidest = 4096;

  GemmBounds(MatrixView<T> x, Work& work);

  // What one thread needs for the points top .. top + count - 1 beside others.
  class Strip {
   public:
    Strip(const GemmBounds& bounds, index top, index count, Work& work);

    // out[i * stride + j] <= ||x_{left + i} - x_{top + j}|| as euclidean.hpp computes it, and
    // by less than 2 % of it; or -1 where that cannot be told, which is also the answer for i = j.
    // How many of those; negative, with `out` in no state, if that is more than few.
    index measure(index left, index count, T* out, index stride, Work& work);

   private:
    const GemmBounds& bounds_;
    index top_, count_;
    AlignedRows<float> panels_;  // a row for each 16 points: their first numbers, their second, ...
    AlignedRows<float> rows_, dots_;
  };

 private:
  void centre_row(index i, float* to) const;

  MatrixView<T> x_;
  index width_;  // of a centred row: a multiple of 16
  std::vector<T> centre_;
  std::vector<float> norms_;  // of the centred rows, squared
  float slack_;               // of the sum of two squared norms
};

}  // namespace pyfast
