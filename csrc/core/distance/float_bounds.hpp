// Distances of a group's points in float, with a bound on their error. A search that allows for it
// does most of its work here, and leaves to exact distances what the bound leaves open.
#pragma once

#include <vector>

#include "core/distance/group_points.hpp"
#include "core/distance/product_distances.hpp"
#include "core/run/memory.hpp"

namespace pyfast {

// The workspace grows and stays.
template <class T>
class FloatBounds {
 public:
  // False if float cannot hold the distances. What `ahead` names is fetched meanwhile. A `rough`
  // error may be several times as large, and many points' distances are found in half the time.
  // The points must outlive all other calls.
  bool measure(const GroupPoints<T>& points, bool rough, const simd::Ahead& ahead, Work& work);

  // Symmetric; rows are filled up with zeros to the stride, a multiple of 16.
  const float* data() const { return distances_.get(); }
  index stride() const { return stride_; }
  const float* row(index i) const { return data() + i * stride_; }
  double error() const { return error_; }  // relative, of every distance
  bool rough() const { return rough_; }

  // The largest distance, exactly.
  double largest() const;

 private:
  bool take_roots();
  bool narrow_rows(index width, Work& work);
  bool measure_exactly(index i, index j, Work& work);
  bool measure_close_pairs(Work& work);
  bool measure_odd_pairs(Work& work);

  const GroupPoints<T>* points_ = nullptr;
  index stride_ = 0;
  double error_ = 0;
  bool rough_ = false;
  ProductDistances products_;
  AlignedRows<float> narrow_;
  BigArray<float> distances_;
  index room_ = 0;                  // of distances_
  std::vector<float> row_largest_;  // at least of the row's distances past the diagonal
  std::vector<const float*> rows_;
};

}  // namespace pyfast
