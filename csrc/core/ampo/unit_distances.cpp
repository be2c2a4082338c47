// Opt-Select's exact distances, divided by the largest: double arithmetic on the rows as given, at
// a scale where neither the least nor the largest is lost.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/ampo/opt_select.hpp"
#include "core/distance/scaling.hpp"
#include "core/run/memory.hpp"

namespace pyfast {

// Distances in exact_, `stride` numbers from one point to the next, and the largest. False if one
// was not to be had from the square of all coordinates' differences.
template <class T>
bool OptSelect<T>::measure_exactly(index stride, Work& work) {
  const index m = points_.count();
  resize(exact_, m * stride, work);
  squares_.measure(points_.rows.data(), m, points_.d, exact_.data(), stride, work);
  largest_ = 0;
  bool usual = true;
  for (index i = 0; i < m; ++i) {
    work.spend(2 * m);
    double* row = exact_.data() + i * stride;
    for (index j = 0; j < m; ++j) {
      if (i == j || comfortable_square(row[j])) {
        row[j] = std::sqrt(row[j]);
      } else {
        work.spend(points_.d);
        row[j] = points_.distance(i, j);
        usual = false;
      }
      largest_ = std::max(largest_, row[j]);
    }
    if (row[i] != 0) throw_overflow(points_.ids[i], points_.ids[i]);  // it is not finite
  }
  return usual;
}

// Divided by the largest, unless the least of them would vanish: then all times a power of two.
template <class T>
void OptSelect<T>::scale_exactly(index stride, double least, Work& work) {
  constexpr double kVanishing = 1e-250;
  const index m = points_.count();
  const bool vanishing = least / largest_ < kVanishing || largest_ < 1e-290;
  const int up = vanishing ? (even_ ? 900 : 0) - std::ilogb(largest_) : 0;
  unit_ = vanishing ? std::ldexp(largest_, up) : 1.0;
  for (index i = 0; i < m; ++i) {
    work.spend(m);
    double* row = exact_.data() + i * stride;
    if (vanishing) {
      scale_by_power_of_two(row, m, up);
    } else {
      for (index j = 0; j < m; ++j) row[j] /= largest_;
    }
  }
}

// In units of the largest or, see above, of largest / unit_.
template <class T>
void OptSelect<T>::exact_distances(index stride, Work& work) {
  constexpr double kTiny = 1e-280;  // below it, double holds few digits of a distance
  const index m = points_.count();
  unit_ = 1;
  double least = std::numeric_limits<double>::infinity();
  if (!measure_exactly(stride, work)) {
    if (largest_ > 0 && largest_ < kTiny) {
      lift_points(work);
      measure_exactly(stride, work);
    }
    for (index i = 0; i < m; ++i) {
      for (index j = 0; j < i; ++j) {
        const double d = exact_[i * stride + j];
        if (d > 0) least = std::min(least, d);
      }
    }
  }
  if (largest_ > 0) scale_exactly(stride, least, work);
}

// Exactly the same set of points, times a power of two.
template <class T>
void OptSelect<T>::lift_points(Work& work) {
  if constexpr (sizeof(T) == sizeof(double)) {
    const index m = points_.count(), d = points_.d;
    const int up = -std::ilogb(largest_);
    resize(lifted_, m * d, work);
    for (index i = 0; i < m; ++i) {
      T* to = lifted_.data() + i * d;
      std::copy_n(points_.rows[i], d, to);
      scale_by_power_of_two(to, d, up);
      points_.rows[i] = to;
    }
  }
}

template void OptSelect<float>::exact_distances(index, Work&);
template void OptSelect<double>::exact_distances(index, Work&);

}  // namespace pyfast
