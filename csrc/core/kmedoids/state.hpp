// What the swap search of k-medoids knows about its present set, and what a swap would do to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/distance/byte_bounds.hpp"
#include "core/distance/point_distances.hpp"
#include "core/kmedoids/problem.hpp"
#include "simd/simd.hpp"

namespace pyfast {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A set of medoids with, for every point, its nearest and second nearest of them.
//
// Distances come from the problem's matrix. If it has none, they come from points: then look_in()
// is called at once, and only what bounds leave open is measured.
template <class T>
class State {
 public:
  // `medoid_rows`: the distances of each medoid to all points.
  State(const KMedoidsProblem<T>& problem, std::vector<index> medoids,
        const std::vector<const T*>& medoid_rows, Work& work)
      : problem_(problem),
        work_(work),
        medoids_(std::move(medoids)),
        is_medoid_(static_cast<std::size_t>(problem.candidates()), 0),
        nearest_(static_cast<std::size_t>(problem.points())),
        costs_(medoids_.size()),
        seconds_(static_cast<std::size_t>(problem.points())),
        removal_(medoids_.size()) {
    for (const index j : medoids_) is_medoid_[j] = 1;
    for (index i = 0; i < problem_.points(); ++i) orphaned_.push_back(static_cast<std::int32_t>(i));
    find_nearest(orphaned_, [&] { offer_rows(orphaned_, medoid_rows); });
    sum_cost();
  }

  // What one thread needs to look at a candidate.
  struct Scan {
    std::vector<std::int32_t> places;
    std::vector<double> losses;
    typename PointDistances<T>::Room room;
  };
  Scan new_scan() const {
    return {
        std::vector<std::int32_t>(nearest_.size() + 4), std::vector<double>(medoids_.size()), {}};
  }

  // From now on candidates are looked at in `bounds` first, those of all rows. Without a matrix,
  // `points` measures the rest.
  void look_in(const ByteBounds<T>* bounds, const PointDistances<T>* points) {
    bounds_ = bounds;
    points_ = points;
    own_ = new_scan();
    if (points_ != nullptr) row_.assign(nearest_.size(), std::numeric_limits<T>::infinity());
    limits_.resize(nearest_.size());
    set_limits();
  }

  const std::vector<index>& medoids() const { return medoids_; }
  bool is_medoid(index j) const { return is_medoid_[j] != 0; }
  double cost() const { return cost_; }
  const std::vector<T>& seconds() const { return seconds_; }
  bool improves(double cost) const { return pyfast::improves(cost, cost_, kImprovement); }

  // Whether bounds leave open that candidate `in` improves the cost: false is certain, and after
  // true costs_with() tells exactly. With the loss R_s of taking medoid s away, the change is
  // R_s - C_s - G for sums C_s and G over the few points that are nearer to `in` than to their
  // second medoid. These are differences of large numbers, so there is room for every rounding in
  // them. Distances that are too small, as those in bytes are, make C_s and G too large: on the
  // safe side.
  bool bounds_leave_open(index in, Scan& scan, Work& work) const {
    if (bounds_ == nullptr) {
      const T* row = problem_.distances.row(in);
      return leave_open(scan, points_below(row, scan.places.data()),
                        [=](index, index i) { return static_cast<double>(row[i]); });
    }
    const unsigned char* bounds = bounds_->row(in);
    const index found =
        kernels_.within(bounds, limits_.data(), problem_.points(), scan.places.data());
    const auto bounded = [=](index, index i) { return bounds_->least(i, bounds[i]); };
    if (!leave_open(scan, found, bounded)) return false;
    if (points_ != nullptr) {
      const T* d = points_->measure(in, scan.places.data(), found, scan.room, work);
      return leave_open(scan, found, [=](index f, index) { return static_cast<double>(d[f]); });
    }
    const T* row = problem_.distances.row(in);
    return leave_open(scan, found, [=](index, index i) { return static_cast<double>(row[i]); });
  }

  // costs_with(in)[s] = the cost after medoid s gives way to candidate `in`: what is left if `in`
  // joins everyone (`joined`), plus what the points of s then lose with s. FasterPAM's Algorithm 3
  // in sums of nonnegative terms only: its differences of large numbers would drown small costs
  // beside heavy points.
  const std::vector<double>& costs_with(index in) {
    std::fill(costs_.begin(), costs_.end(), 0.0);
    const T* to_in = candidate_row(in);
    double joined = 0;
    for (index i = 0; i < problem_.points(); ++i) {
      const Nearest& near = nearest_[i];
      const double d = static_cast<double>(to_in[i]);
      const double with = std::min(near.first, d);
      joined += problem_.weights[i] * with;
      costs_[near.slot] += problem_.weights[i] * (std::min(near.second, d) - with);
    }
    for (double& cost : costs_) cost += joined;
    return costs_;
  }

  // Whether the cost has fallen, as it does for distances >= 0; no others keep a search going.
  bool apply(const Swap& swap) {
    const double before = cost_;
    is_medoid_[medoids_[swap.slot]] = 0;
    is_medoid_[swap.in] = 1;
    medoids_[swap.slot] = swap.in;
    const T* to_in = candidate_row(swap.in);
    orphaned_.clear();
    for (index i = 0; i < problem_.points(); ++i) {
      Nearest& near = nearest_[i];
      const double d = static_cast<double>(to_in[i]);
      if (near.slot == swap.slot || near.second_slot == swap.slot) {
        orphaned_.push_back(static_cast<std::int32_t>(i));
      } else if (d < near.first) {
        near = {d, near.first, swap.slot, near.slot};
      } else if (d < near.second) {
        near.second = d;
        near.second_slot = swap.slot;
      }
    }
    find_orphaned(swap.slot);
    sum_cost();
    return cost_ < before;
  }

 private:
  struct Nearest {
    double first = kInfinity;
    double second = kInfinity;
    std::int32_t slot = -1;
    std::int32_t second_slot = -1;
  };

  // The distances of candidate `in`. Measured ones are infinite where they are not below the second
  // nearest medoid's, and so make no difference.
  const T* candidate_row(index in) {
    if (points_ == nullptr) return problem_.distances.row(in);
    if (in == measured_) return row_.data();
    measured_ = in;
    for (index f = 0; f < in_row_; ++f) row_[own_.places[f]] = std::numeric_limits<T>::infinity();
    in_row_ =
        kernels_.within(bounds_->row(in), limits_.data(), problem_.points(), own_.places.data());
    const T* d = points_->measure(in, own_.places.data(), in_row_, own_.room, work_);
    for (index f = 0; f < in_row_; ++f) row_[own_.places[f]] = d[f];
    return row_.data();
  }

  // bounds_leave_open() by distance(f, i) of the first `found` points i in scan.places.
  template <class Distance>
  bool leave_open(Scan& scan, index found, Distance&& distance) const {
    std::fill(scan.losses.begin(), scan.losses.end(), 0.0);
    double gain = 0;
    for (index f = 0; f < found; ++f) {
      const index i = scan.places[f];
      const Nearest& near = nearest_[i];
      const double d = std::min(distance(f, i), near.second);
      const double with = std::min(near.first, d);
      const double w = problem_.weights[i];
      gain += w * (near.first - with);
      scan.losses[near.slot] += w * (near.second - near.first - (d - with));
    }
    double least = kInfinity;
    for (std::size_t s = 0; s < scan.losses.size(); ++s) {
      least = std::min(least, removal_[s] - scan.losses[s]);
    }
    return least - gain < rounding_;
  }

  index points_below(const float* row, std::int32_t* places) const {
    return kernels_.below_f32(row, seconds_.data(), problem_.points(), places);
  }
  index points_below(const double* row, std::int32_t* places) const {
    return kernels_.below_f64(row, seconds_.data(), problem_.points(), places);
  }

  // A better medoid of place p than it has: without a branch, which would go the wrong way too
  // often.
  void offer(std::size_t p, std::int32_t slot, T d) {
    const T first = first_[p], second = second_[p];
    const std::int32_t old = slot_[p];
    const bool nearest = d < first, near = d < second;
    second_[p] = nearest ? first : near ? d : second;
    second_slot_[p] = nearest ? old : near ? slot : second_slot_[p];
    first_[p] = nearest ? d : first;
    slot_[p] = nearest ? slot : old;
  }

  // offer_all() offers some points all medoids that matter, the lowest slot first.
  template <class OfferAll>
  void find_nearest(const std::vector<std::int32_t>& points, OfferAll&& offer_all) {
    constexpr T kFar = std::numeric_limits<T>::infinity();
    const std::size_t count = points.size();
    first_.assign(count, kFar);
    second_.assign(count, kFar);
    slot_.assign(count, -1);
    second_slot_.assign(count, -1);
    offer_all();
    for (std::size_t p = 0; p < count; ++p) {
      nearest_[points[p]] = {static_cast<double>(first_[p]), static_cast<double>(second_[p]),
                             slot_[p], second_slot_[p]};
    }
  }

  // Medoid by medoid, so that its distances are read in order.
  void offer_rows(const std::vector<std::int32_t>& points, const std::vector<const T*>& rows) {
    for (std::size_t s = 0; s < medoids_.size(); ++s) {
      work_.spend(4 * static_cast<index>(points.size()));
      for (std::size_t p = 0; p < points.size(); ++p) {
        offer(p, static_cast<std::int32_t>(s), rows[s][points[p]]);
      }
    }
  }

  // The distance of a point to the medoid of a slot, if it was one of its two nearest and still is
  // a medoid, or has just been measured; else infinity.
  T known_distance(index i, std::int32_t slot, std::int32_t swapped) const {
    constexpr T kUnknown = std::numeric_limits<T>::infinity();
    if (slot == swapped) return points_ != nullptr ? row_[i] : kUnknown;
    const Nearest& before = nearest_[i];
    if (before.slot == slot) return static_cast<T>(before.first);
    return before.second_slot == slot ? static_cast<T>(before.second) : kUnknown;
  }

  // A bound is the whole part of a distance in steps: if two medoids have bounds up to b, none with
  // a bound above b + 1 is one of the two nearest.
  void offer_by_bounds(const std::vector<std::int32_t>& points, std::int32_t swapped) {
    std::vector<unsigned char> least(points.size(), 255), second(points.size(), 255);
    for (const index medoid : medoids_) {
      const unsigned char* bounds = bounds_->row(medoid);
      for (std::size_t p = 0; p < points.size(); ++p) {
        const unsigned char bound = bounds[points[p]];
        second[p] = std::min(second[p], std::max(least[p], bound));
        least[p] = std::min(least[p], bound);
      }
    }
    std::vector<std::int32_t> near;
    std::vector<std::size_t> places;
    for (std::size_t s = 0; s < medoids_.size(); ++s) {
      const unsigned char* bounds = bounds_->row(medoids_[s]);
      const auto slot = static_cast<std::int32_t>(s);
      near.clear();
      places.clear();
      work_.spend(4 * static_cast<index>(points.size()));
      for (std::size_t p = 0; p < points.size(); ++p) {
        if (bounds[points[p]] > second[p] + 1) continue;
        const T known = known_distance(points[p], slot, swapped);
        if (known < std::numeric_limits<T>::infinity()) {
          offer(p, slot, known);
          continue;
        }
        near.push_back(points[p]);
        places.push_back(p);
      }
      if (points_ == nullptr) {
        const T* row = problem_.distances.row(medoids_[s]);
        for (std::size_t f = 0; f < near.size(); ++f) offer(places[f], slot, row[near[f]]);
        continue;
      }
      const T* d = points_->measure(medoids_[s], near.data(), static_cast<index>(near.size()),
                                    own_.room, work_);
      for (std::size_t f = 0; f < near.size(); ++f) offer(places[f], slot, d[f]);
    }
  }

  // After a swap of a slot's medoid.
  void find_orphaned(std::int32_t swapped) {
    if (bounds_ != nullptr) {
      find_nearest(orphaned_, [&] { offer_by_bounds(orphaned_, swapped); });
      return;
    }
    std::vector<const T*> rows;
    for (const index j : medoids_) rows.push_back(problem_.distances.row(j));
    find_nearest(orphaned_, [&] { offer_rows(orphaned_, rows); });
  }

  void sum_cost() {
    cost_ = 0;
    double second = 0;  // bounds every other sum of the search
    std::fill(removal_.begin(), removal_.end(), 0.0);
    for (index i = 0; i < problem_.points(); ++i) {
      const Nearest& near = nearest_[i];
      cost_ += problem_.weights[i] * near.first;
      second += problem_.weights[i] * near.second;
      removal_[near.slot] += problem_.weights[i] * (near.second - near.first);
      seconds_[i] = static_cast<T>(near.second);
    }
    // Every sum of bounds_leave_open() has at most n terms and is at most `second`.
    rounding_ = 1e-15 * static_cast<double>(problem_.points()) * second;
    if (!std::isfinite(second)) {
      throw std::range_error("weights times distances overflow float64; scale the weights down");
    }
    if (bounds_ != nullptr) set_limits();
    measured_ = -1;
  }

  void set_limits() {
    for (std::size_t i = 0; i < limits_.size(); ++i) {
      limits_[i] = bounds_->limit(static_cast<index>(i), nearest_[i].second);
    }
  }

  const KMedoidsProblem<T>& problem_;
  Work& work_;  // of the thread that swaps
  std::vector<index> medoids_;
  std::vector<char> is_medoid_;
  std::vector<Nearest> nearest_;
  std::vector<double> costs_;
  std::vector<T> seconds_;              // second distances once more, side by side
  std::vector<std::int32_t> orphaned_;  // points that lost one of their two medoids
  std::vector<T> first_, second_;       // of those points, as are the slots
  std::vector<std::int32_t> slot_, second_slot_;
  std::vector<double> removal_;  // of each slot: what taking it away would cost
  double cost_ = 0, rounding_ = 0;
  const ByteBounds<T>* bounds_ = nullptr;
  const PointDistances<T>* points_ = nullptr;
  std::vector<T> row_;  // of the last candidate measured,
  index in_row_ = 0;    // at so many of own_.places
  index measured_ = -1;
  Scan own_;
  std::vector<unsigned char> limits_;  // bounds above them are not below the second distance
  const simd::Kernels& kernels_ = simd::kernels();
};

}  // namespace pyfast
