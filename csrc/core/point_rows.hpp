// The distances that a swap search of points reads, without a matrix of them: a row for each medoid
// and one for the candidate that is looked at, and some of a row for those that are soon given up.
#pragma once

#include <utility>
#include <vector>

#include "core/big_array.hpp"
#include "core/pairwise.hpp"
#include "core/parallel.hpp"

namespace pyfast {

template <class T>
class PointRows {
 public:
  PointRows(MatrixView<T> x, const std::vector<index>& medoids, const index* names, int threads,
            Cancel& cancel, Token& token)
      : x_(x),
        names_(names),
        threads_(threads),
        cancel_(cancel),
        token_(token),
        rows_(big_array<T>((static_cast<index>(medoids.size()) + 1) * x.rows)),
        spare_(static_cast<index>(medoids.size())) {
    for (index s = 0; s < spare_; ++s) places_.push_back(s);
    distance_rows(x_, medoids, rows_.get(), threads_, cancel_, token_, names_);
  }

  const T* medoid(std::size_t slot) const { return at(places_[slot]); }

  const T* candidate(index j) {
    if (j != candidate_) distance_rows(x_, {j}, at(spare_), threads_, cancel_, token_, names_);
    candidate_ = j;
    return at(spare_);
  }

  // The last candidate is now the medoid of this slot.
  void take(std::size_t slot) {
    std::swap(places_[slot], spare_);
    candidate_ = -1;
  }

  // Room for some of a row; each thread has its own.
  struct Part {
    std::vector<const T*> points;
    std::vector<T> distances;
  };

  // The distances of candidate j to these points.
  const T* some(index j, const std::int32_t* points, index count, Part& part) const {
    part.points.clear();
    for (index p = 0; p < count; ++p) part.points.push_back(x_.row(points[p]));
    part.distances.resize(static_cast<std::size_t>(count));
    distances_to(x_.row(j), part.points.data(), count, x_.cols, part.distances.data());
    return part.distances.data();
  }

 private:
  T* at(index place) const { return rows_.get() + place * x_.rows; }

  MatrixView<T> x_;
  const index* names_;  // of the points, for errors; or null
  int threads_;
  Cancel& cancel_;
  Token& token_;
  BigArray<T> rows_;
  index spare_;                // where the candidate's row is
  std::vector<index> places_;  // where each slot's row is
  index candidate_ = -1;
};

}  // namespace pyfast
