// What the swap search of k-medoids knows about its present set, and what a swap would do to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/kmedoids.hpp"
#include "simd/simd.hpp"

namespace pyfast {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Swap {
  std::int32_t slot = -1;  // position of the medoid that leaves
  index in = -1;           // candidate that comes
  double change = 0;
};

// A set of medoids with, for every point, its nearest and second nearest of them.
template <class T>
class State {
 public:
  State(const KMedoidsProblem<T>& problem, std::vector<index> medoids)
      : problem_(problem),
        medoids_(std::move(medoids)),
        is_medoid_(static_cast<std::size_t>(problem.candidates()), 0),
        nearest_(static_cast<std::size_t>(problem.points())),
        costs_(medoids_.size()),
        seconds_(static_cast<std::size_t>(problem.points())),
        removal_(medoids_.size()) {
    for (const index j : medoids_) is_medoid_[j] = 1;
    for (index i = 0; i < problem_.points(); ++i) find_nearest(i);
    sum_cost();
  }

  // What one thread needs to look at a candidate.
  struct Scan {
    std::vector<std::int32_t> places;
    std::vector<double> losses;
  };
  Scan new_scan() const {
    return {std::vector<std::int32_t>(nearest_.size()), std::vector<double>(medoids_.size())};
  }

  const std::vector<index>& medoids() const { return medoids_; }
  bool is_medoid(index j) const { return is_medoid_[j] != 0; }
  double cost() const { return cost_; }
  bool improves(double cost) const { return cost_ - cost > kImprovement * cost_; }

  // Whether candidate `in` could improve the cost: false is certain, true is not. With the loss
  // R_s of taking medoid s away, the change is R_s - C_s - G for sums C_s and G over the few points
  // that are nearer to `in` than to their second medoid. These are differences of large numbers,
  // so the answer leaves room for every rounding in them; costs_with() then decides.
  bool may_improve(index in, Scan& scan) const {
    const index found = points_below(problem_.distances.row(in), scan.places.data());
    std::fill(scan.losses.begin(), scan.losses.end(), 0.0);
    double gain = 0;
    for (index f = 0; f < found; ++f) {
      const index i = scan.places[f];
      const Nearest& near = nearest_[i];
      const double d = static_cast<double>(problem_.distances.row(in)[i]);
      const double w = problem_.weights[i];
      if (d < near.first) gain += w * (near.first - d);
      scan.losses[near.slot] += w * (near.second - std::max(d, near.first));
    }
    double least = kInfinity;
    for (std::size_t s = 0; s < scan.losses.size(); ++s) {
      least = std::min(least, removal_[s] - scan.losses[s]);
    }
    return least - gain < rounding_;
  }

  // costs_with(in)[s] = the cost after medoid s gives way to candidate `in`: what is left if `in`
  // joins everyone (`joined`), plus what the points of s then lose with s. FasterPAM's Algorithm 3
  // in sums of nonnegative terms only: its differences of large numbers would drown small costs
  // beside heavy points.
  const std::vector<double>& costs_with(index in) {
    std::fill(costs_.begin(), costs_.end(), 0.0);
    const T* to_in = problem_.distances.row(in);
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

  void apply(const Swap& swap) {
    is_medoid_[medoids_[swap.slot]] = 0;
    is_medoid_[swap.in] = 1;
    medoids_[swap.slot] = swap.in;
    const T* to_in = problem_.distances.row(swap.in);
    for (index i = 0; i < problem_.points(); ++i) {
      Nearest& near = nearest_[i];
      const double d = static_cast<double>(to_in[i]);
      if (near.slot == swap.slot || near.second_slot == swap.slot) {
        find_nearest(i);
      } else if (d < near.first) {
        near = {d, near.first, swap.slot, near.slot};
      } else if (d < near.second) {
        near.second = d;
        near.second_slot = swap.slot;
      }
    }
    sum_cost();
  }

 private:
  struct Nearest {
    double first = kInfinity;
    double second = kInfinity;
    std::int32_t slot = -1;
    std::int32_t second_slot = -1;
  };

  index points_below(const float* row, std::int32_t* places) const {
    return kernels_.below_f32(row, seconds_.data(), problem_.points(), places);
  }
  index points_below(const double* row, std::int32_t* places) const {
    return kernels_.below_f64(row, seconds_.data(), problem_.points(), places);
  }

  void find_nearest(index i) {
    Nearest near;
    for (std::size_t s = 0; s < medoids_.size(); ++s) {
      const double d = static_cast<double>(problem_.distances.row(medoids_[s])[i]);
      const auto slot = static_cast<std::int32_t>(s);
      if (near.slot < 0 || d < near.first) {
        near = {d, near.first, slot, near.slot};
      } else if (d < near.second) {
        near.second = d;
        near.second_slot = slot;
      }
    }
    nearest_[i] = near;
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
  }

  const KMedoidsProblem<T>& problem_;
  std::vector<index> medoids_;
  std::vector<char> is_medoid_;
  std::vector<Nearest> nearest_;
  std::vector<double> costs_;
  std::vector<T> seconds_;       // second distances once more, side by side
  std::vector<double> removal_;  // of each slot: what taking it away would cost
  double cost_ = 0, rounding_ = 0;
  const simd::Kernels& kernels_ = simd::kernels();
};

}  // namespace pyfast
