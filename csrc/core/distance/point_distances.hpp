// Distances of a few pairs of points, for a search without a matrix of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/distance/euclidean.hpp"
#include "core/run/work.hpp"

namespace pyfast {

template <class T>
class PointDistances {
 public:
  explicit PointDistances(MatrixView<T> x) : x_(x) {}

  // Room for an answer; each thread has its own.
  struct Room {
    std::vector<const T*> points;
    std::vector<T> distances;
  };

  // The distances of point j to `count` points; as euclidean_distances() has them.
  const T* measure(index j, const std::int32_t* points, index count, Room& room, Work& work) const {
    const index some = Work::fitting(x_.cols);
    room.points.clear();
    for (index p = 0; p < count; ++p) room.points.push_back(x_.row(points[p]));
    room.distances.resize(static_cast<std::size_t>(count));
    for (index p = 0; p < count; p += some) {
      const index piece = std::min(some, count - p);
      work.spend(piece * x_.cols);
      distances_to(x_.row(j), room.points.data() + p, piece, x_.cols, room.distances.data() + p);
    }
    return room.distances.data();
  }

 private:
  MatrixView<T> x_;
};

}  // namespace pyfast
