// What the swap search of k-medoids knows about its present set, and what a swap would do to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/distance_codes.hpp"
#include "core/kmedoids.hpp"
#include "core/point_rows.hpp"
#include "simd/simd.hpp"

namespace pyfast {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Swap {
  std::int32_t slot = -1;  // position of the medoid that leaves
  index in = -1;           // candidate that comes
  double change = 0;
};

// A set of medoids with, for every point, its nearest and second nearest of them. Distances are
// those of the problem's matrix, or of `rows` if it is not null; then every row has codes.
template <class T>
class State {
 public:
  State(const KMedoidsProblem<T>& problem, std::vector<index> medoids, PointRows<T>* rows)
      : problem_(problem),
        rows_(rows),
        medoids_(std::move(medoids)),
        is_medoid_(static_cast<std::size_t>(problem.candidates()), 0),
        nearest_(static_cast<std::size_t>(problem.points())),
        costs_(medoids_.size()),
        seconds_(static_cast<std::size_t>(problem.points())),
        removal_(medoids_.size()) {
    for (const index j : medoids_) is_medoid_[j] = 1;
    for (index i = 0; i < problem_.points(); ++i) bereft_.push_back(static_cast<std::int32_t>(i));
    find_nearest(bereft_);
    sum_cost();
  }

  // What one thread needs to look at a candidate.
  struct Scan {
    std::vector<std::int32_t> places;
    std::vector<double> losses;
    typename PointRows<T>::Part part;
  };
  Scan new_scan() const {
    return {
        std::vector<std::int32_t>(nearest_.size() + 4), std::vector<double>(medoids_.size()), {}};
  }

  // From now on candidates that were looked at before are looked at in `codes` first.
  void look_in(DistanceCodes<T>* codes) {
    codes_ = codes;
    limits_.resize(nearest_.size());
    set_limits();
  }

  const std::vector<index>& medoids() const { return medoids_; }
  bool is_medoid(index j) const { return is_medoid_[j] != 0; }
  double cost() const { return cost_; }
  const std::vector<T>& seconds() const { return seconds_; }
  bool improves(double cost) const { return cost < cost_ && cost_ - cost > kImprovement * cost_; }

  // Whether candidate `in` could improve the cost: false is certain, true is not. With the loss
  // R_s of taking medoid s away, the change is R_s - C_s - G for sums C_s and G over the few points
  // that are nearer to `in` than to their second medoid. These are differences of large numbers,
  // so the answer leaves room for every rounding in them; costs_with() then decides. Distances that
  // are too small, as codes are, make C_s and G too large: on the safe side.
  bool may_improve(index in, Scan& scan) const {
    if (codes_ != nullptr && (rows_ != nullptr || codes_->has(in))) {
      const unsigned char* codes = codes_->row(in);
      const index found =
          kernels_.within(codes, limits_.data(), problem_.points(), scan.places.data());
      const auto coded = [=](index, index i) { return codes_->least(i, codes[i]); };
      if (!may_gain(scan, found, coded)) return false;
      if (rows_ != nullptr) {
        const T* d = rows_->some(in, scan.places.data(), found, scan.part);
        return may_gain(scan, found, [=](index f, index) { return static_cast<double>(d[f]); });
      }
    }
    const T* row = problem_.distances.row(in);
    if (codes_ != nullptr && !codes_->has(in)) codes_->add(in, row);
    return may_gain(scan, points_below(row, scan.places.data()),
                    [=](index, index i) { return static_cast<double>(row[i]); });
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
    if (rows_ != nullptr) rows_->take(static_cast<std::size_t>(swap.slot));
    bereft_.clear();
    for (index i = 0; i < problem_.points(); ++i) {
      Nearest& near = nearest_[i];
      const double d = static_cast<double>(to_in[i]);
      if (near.slot == swap.slot || near.second_slot == swap.slot) {
        bereft_.push_back(static_cast<std::int32_t>(i));
      } else if (d < near.first) {
        near = {d, near.first, swap.slot, near.slot};
      } else if (d < near.second) {
        near.second = d;
        near.second_slot = swap.slot;
      }
    }
    find_nearest(bereft_);
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

  const T* candidate_row(index in) {
    return rows_ != nullptr ? rows_->candidate(in) : problem_.distances.row(in);
  }
  const T* medoid_row(std::size_t slot) const {
    return rows_ != nullptr ? rows_->medoid(slot) : problem_.distances.row(medoids_[slot]);
  }

  // may_improve() by distance(f, i) of the first `found` points i in scan.places.
  template <class Distance>
  bool may_gain(Scan& scan, index found, Distance&& distance) const {
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

  // Medoid by medoid, so that its distances are read in order, and without a branch, which would
  // go the wrong way too often.
  void find_nearest(const std::vector<std::int32_t>& points) {
    constexpr T kFar = std::numeric_limits<T>::infinity();
    const std::size_t count = points.size();
    first_.assign(count, kFar);
    second_.assign(count, kFar);
    slot_.assign(count, -1);
    second_slot_.assign(count, -1);
    for (std::size_t s = 0; s < medoids_.size(); ++s) {
      const T* row = medoid_row(s);
      const auto slot = static_cast<std::int32_t>(s);
      for (std::size_t p = 0; p < count; ++p) {
        const T d = row[points[p]], first = first_[p], second = second_[p];
        const std::int32_t old = slot_[p];
        const bool nearest = d < first, near = d < second;
        second_[p] = nearest ? first : near ? d : second;
        second_slot_[p] = nearest ? old : near ? slot : second_slot_[p];
        first_[p] = nearest ? d : first;
        slot_[p] = nearest ? slot : old;
      }
    }
    for (std::size_t p = 0; p < count; ++p) {
      nearest_[points[p]] = {static_cast<double>(first_[p]), static_cast<double>(second_[p]),
                             slot_[p], second_slot_[p]};
    }
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
    // Every sum of may_improve() has at most n terms and is at most `second`.
    rounding_ = 1e-15 * static_cast<double>(problem_.points()) * second;
    if (!std::isfinite(second)) {
      throw std::range_error("weights times distances overflow float64; scale the weights down");
    }
    if (codes_ != nullptr) set_limits();
  }

  void set_limits() {
    for (std::size_t i = 0; i < limits_.size(); ++i) {
      limits_[i] = codes_->limit(static_cast<index>(i), nearest_[i].second);
    }
  }

  const KMedoidsProblem<T>& problem_;
  PointRows<T>* rows_;
  std::vector<index> medoids_;
  std::vector<char> is_medoid_;
  std::vector<Nearest> nearest_;
  std::vector<double> costs_;
  std::vector<T> seconds_;            // second distances once more, side by side
  std::vector<std::int32_t> bereft_;  // points that lost one of their two medoids
  std::vector<T> first_, second_;     // of those points, as are the slots
  std::vector<std::int32_t> slot_, second_slot_;
  std::vector<double> removal_;  // of each slot: what taking it away would cost
  double cost_ = 0, rounding_ = 0;
  DistanceCodes<T>* codes_ = nullptr;
  std::vector<unsigned char> limits_;  // codes above them are not below the second distance
  const simd::Kernels& kernels_ = simd::kernels();
};

}  // namespace pyfast
