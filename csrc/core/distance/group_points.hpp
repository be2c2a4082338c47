// The points of one group: some of its rows, in an order of their own.
#pragma once

#include <cmath>
#include <vector>

#include "core/distance/exact.hpp"
#include "core/run/views.hpp"

namespace pyfast {

template <class T>
struct GroupPoints {
  index d = 0;
  std::vector<index> ids;  // in the group
  std::vector<const T*> rows;

  index count() const { return static_cast<index>(rows.size()); }

  // Exact: double arithmetic on the rows as given.
  double distance(index i, index j) const {
    const double distance = exact_distance(rows[i], rows[j], d);
    if (!std::isfinite(distance)) throw_overflow(ids[i], ids[j]);
    return distance;
  }
};

}  // namespace pyfast
