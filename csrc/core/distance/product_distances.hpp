// Distances of a group's points by matrix products: half the arithmetic of differences, and more
// roundings.
//
// ||x - y||^2 = ||x||^2 + ||y||^2 - 2 x.y, of float rows less a centre. Where that is a small part
// of the two norms, little is left of its digits: such pairs are for the caller to measure.
#pragma once

#include <vector>

#include "core/distance/group_points.hpp"
#include "core/run/memory.hpp"

namespace pyfast {

// The workspace grows and stays.
class ProductDistances {
 public:
  // out[i * stride + j] for all pairs of points, symmetric, with zeros on the diagonal and past the
  // last column of a row; -1 for a pair that is too close. Returns 0 if there is none of those;
  // negative, with `out` in no state, if they are more than few, or if the numbers are out of
  // float's comfortable range. row_largest[i] is the largest of row i past the diagonal, or
  // another of the row. The stride is a multiple of 16; bits do not depend on threads or SIMD
  // level.
  template <class T>
  index measure(const GroupPoints<T>& points, float* out, index stride, float* row_largest,
                Work& work);

  // Relative, of every distance of points of d numbers.
  static double error(index d);

 private:
  template <class T>
  void find_centre(const GroupPoints<T>& points);
  template <class T>
  bool fill_panels(const GroupPoints<T>& points, Work& work);
  index measure_block(index from, index to, float* out, index stride, float* largest,
                      Work& work) const;

  index count_ = 0, width_ = 0;
  std::vector<float> centre_, norms_;  // of centred rows, squared
  std::vector<float> largest_;         // of each worker, of each column
  AlignedRows<float> rows_, panels_;   // centred: 16 of them; 16 points a panel, number by number
};

}  // namespace pyfast
