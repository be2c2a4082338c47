// Exact swaps on all of many points, from a set that was found on a sample of them.
//
// Candidates are few, since each costs its distances to all points: those nearest to the middle of
// each cluster, and points that lie far from every medoid, as a cluster does that no sample had.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "core/distance/euclidean.hpp"
#include "core/kmedoids/assign.hpp"
#include "core/kmedoids/kmedoids.hpp"
#include "core/run/memory.hpp"
#include "core/run/random.hpp"

namespace pyfast {

// A set of medoids of all points and the rows of their distances, with room for as many candidates.
template <class T>
class Polish {
 public:
  Polish(const KMedoidsPoints<T>& points, std::uint64_t seed, Work& work)
      : x_(points.x),
        weights_(points.weights),
        k_(points.k),
        seed_(seed),
        work_(work),
        slots_(static_cast<std::size_t>(x_.rows)),
        first_(slots_.size()),
        second_(slots_.size()),
        tried_(slots_.size(), 0),
        rows_(big_array<T>(2 * k_ * x_.rows)) {
    touch(rows_.get(), 2 * k_ * x_.rows, work);
  }

  // Of several sets the one that costs least on all points, the first of equals, is where to begin.
  std::size_t begin_with_best(const std::vector<std::vector<index>>& sets) {
    std::size_t best = 0, last = 0;
    double least = 0;
    for (std::size_t s = 0; s < sets.size(); ++s) {
      last = s;
      begin_with(sets[s]);
      if (sets.size() == 1) return 0;
      measure();
      const double cost = total_cost();
      if (s == 0 || cost < least) {
        best = s;
        least = cost;
      }
    }
    if (best != last) begin_with(sets[best]);
    return best;
  }

  // Rounds of exact swaps; how many there were. Those that find far clusters are not counted, since
  // the set is all but new then.
  index run() {
    constexpr int kMostRounds = 10, kMostInAll = 40;
    index swaps = 0;
    for (int round = 0, counted = 0; counted < kMostRounds && round < kMostInAll; ++round) {
      measure();
      const std::vector<index> far = far_points(static_cast<std::uint32_t>(round));
      const std::vector<index> middles = near_middles();
      const index far_swaps = try_all(far);
      const index found = far_swaps + try_all(middles);
      if (found == 0) break;
      swaps += found;
      if (far_swaps == 0) ++counted;
    }
    return swaps;
  }

  // Medoids ascending, with their cost and the labels.
  void finish(KMedoidsSolution& solution, index* labels) {
    std::vector<index> order = slots_in_order();
    std::sort(order.begin(), order.end(),
              [&](index a, index b) { return medoids_[a] < medoids_[b]; });
    solution.medoids.clear();
    for (const index s : order) solution.medoids.push_back(medoids_[s]);
    assign_nearest(KMedoidsProblem<T>{{rows_.get(), k_, x_.rows}, weights_, k_}, order, work_,
                   labels);
    solution.cost = 0;
    for (index i = 0; i < x_.rows; ++i) {
      solution.cost += weights_[i] * static_cast<double>(row(order[labels[i]])[i]);
    }
    label_medoids(solution.medoids, labels);
  }

 private:
  const T* row(index r) const { return rows_.get() + r * x_.rows; }

  void begin_with(const std::vector<index>& medoids) {
    medoids_ = medoids;
    fill_rows(0, medoids_);
  }

  // Rows first, first + 1, ... = the distances of `points` to all points.
  void fill_rows(index first, const std::vector<index>& points) {
    distance_rows(x_, points, rows_.get() + first * x_.rows, work_);
  }

  std::vector<index> slots_in_order() const {
    std::vector<index> rows(medoids_.size());
    std::iota(rows.begin(), rows.end(), index{0});
    return rows;
  }

  // Each point's nearest medoid and the distances of that and the second one.
  void measure() {
    constexpr T kFar = std::numeric_limits<T>::infinity();
    std::copy(row(0), row(0) + x_.rows, first_.begin());
    std::fill(second_.begin(), second_.end(), kFar);
    std::fill(slots_.begin(), slots_.end(), 0);
    for (index s = 1; s < k_; ++s) {
      work_.spend(2 * x_.rows);
      const T* d = row(s);
      for (std::size_t i = 0; i < slots_.size(); ++i) {
        const T first = first_[i], own = d[i];
        const bool nearest = own < first;
        second_[i] = std::min(second_[i], nearest ? first : own);
        first_[i] = nearest ? own : first;
        slots_[i] = nearest ? static_cast<std::int32_t>(s) : slots_[i];
      }
    }
    for (index s = 0; s < k_; ++s) slots_[medoids_[s]] = static_cast<std::int32_t>(s);
  }

  double share(index i) const { return weights_[i] * static_cast<double>(first_[i]); }

  double total_cost() const {
    double sum = 0;
    for (index i = 0; i < x_.rows; ++i) sum += share(i);
    return sum;
  }

  // What the cost would rise by without the medoid that is missed least.
  double least_removal() const {
    std::vector<double> losses(medoids_.size());
    for (index i = 0; i < x_.rows; ++i) {
      losses[slots_[i]] += weights_[i] * static_cast<double>(second_[i] - first_[i]);
    }
    return *std::min_element(losses.begin(), losses.end());
  }

  // Points that seem worth a medoid of their own, the most promising first. Of all points those are
  // looked at that were drawn in proportion to what they cost - each draw stands for an equal part
  // of the cost - and the farthest and the dearest ones, which stand for themselves.
  std::vector<index> far_points(std::uint32_t round) {
    constexpr double kPromising = 0.8;  // of what has to be gained: draws are an estimate
    const double total = total_cost();
    if (k_ == 1 || !(total > 0) || !std::isfinite(total)) return {};
    const index draws = std::min<index>(4 * std::max<index>(k_, 32), 1024);
    std::vector<std::pair<index, double>> drawn = draw_by_cost(draws, total, round);
    add_extremes(std::min<index>(std::max<index>(k_, 32), 256), drawn);
    return most_gaining(drawn, kPromising * least_removal());
  }

  // Distinct points with the parts of the cost that they stand for.
  std::vector<std::pair<index, double>> draw_by_cost(index draws, double total,
                                                     std::uint32_t round) {
    constexpr std::uint32_t kOwnStreams = 0x80000000u;
    Random random(seed_, Purpose::sample, kOwnStreams + round);
    std::vector<std::pair<index, double>> drawn;
    const double part = total / static_cast<double>(draws);
    double passed = 0;  // cost of the points up to i
    index s = 0;
    double next = random.uniform() * part;
    for (index i = 0; i < x_.rows && s < draws; ++i) {
      const double own = share(i);
      passed += own;
      double stands_for = 0;
      while (s < draws && next < passed) {
        stands_for += part;
        if (++s < draws) next = (static_cast<double>(s) + random.uniform()) * part;
      }
      if (stands_for > 0) drawn.emplace_back(i, std::max(stands_for, own));
    }
    return drawn;
  }

  void add_extremes(index count, std::vector<std::pair<index, double>>& drawn) const {
    std::vector<char> there(slots_.size(), 0);
    for (const auto& [i, part] : drawn) there[i] = 1;
    std::vector<index> order;
    for (index i = 0; i < x_.rows; ++i) {
      if (share(i) > 0) order.push_back(i);
    }
    const auto add_first = [&](const auto& value) {
      const auto most = std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(order.size()));
      std::partial_sort(order.begin(), order.begin() + most, order.end(), [&](index a, index b) {
        const double x = value(a), y = value(b);
        return x > y || (x == y && a < b);
      });
      for (std::ptrdiff_t c = 0; c < most; ++c) {
        if (there[order[c]] == 0) drawn.emplace_back(order[c], share(order[c]));
        there[order[c]] = 1;
      }
    };
    add_first([&](index i) { return share(i); });
    add_first([&](index i) { return static_cast<double>(first_[i]); });
  }

  // Greedily by how much of the drawn cost a point would still save, while that is at least
  // `enough`.
  std::vector<index> most_gaining(const std::vector<std::pair<index, double>>& drawn,
                                  double enough) {
    const auto count = static_cast<index>(drawn.size());
    std::vector<const T*> to;
    for (const auto& [i, part] : drawn) to.push_back(x_.row(i));
    std::vector<T> distances(static_cast<std::size_t>(count * count));
    work_.each(count, static_cast<double>(count * count * x_.cols) / 16,
               [&](index c, int, Work& own) {
                 own.spend(count * x_.cols);
                 distances_to(to[c], to.data(), count, x_.cols, distances.data() + c * count);
               });
    std::vector<double> left(drawn.size());  // distance to the nearest medoid or chosen point
    for (std::size_t p = 0; p < drawn.size(); ++p) {
      left[p] = static_cast<double>(first_[drawn[p].first]);
    }
    const auto gain = [&](index c) {
      double sum = 0;
      for (index p = 0; p < count; ++p) {
        const double d = static_cast<double>(distances[c * count + p]);
        const double now = static_cast<double>(first_[drawn[p].first]);
        if (d < left[p]) sum += drawn[p].second * ((left[p] - d) / now);
      }
      return sum;
    };
    constexpr index kMost = 128;
    std::vector<index> chosen;
    while (static_cast<index>(chosen.size()) < std::min(k_, kMost)) {
      index best = -1;
      double most = enough;
      for (index c = 0; c < count; ++c) {
        work_.spend(count);
        const double own = gain(c);
        if (own > most) {
          best = c;
          most = own;
        }
      }
      if (best < 0) break;
      for (index p = 0; p < count; ++p) {
        left[p] = std::min(left[p], static_cast<double>(distances[best * count + p]));
      }
      chosen.push_back(drawn[best].first);
      tried_[drawn[best].first] = 1;
    }
    return chosen;
  }

  // The points of each cluster nearest to one step of Weiszfeld's iteration from its medoid towards
  // the geometric median, if they have not been tried.
  std::vector<index> near_middles() {
    constexpr index kPerCluster = 4;
    std::vector<std::vector<index>> members(medoids_.size());
    for (index i = 0; i < x_.rows; ++i) members[slots_[i]].push_back(i);
    std::vector<std::vector<index>> nearest(medoids_.size());
    work_.each(k_, static_cast<double>(x_.rows * x_.cols), [&](index s, int, Work& own) {
      nearest[s] = near_middle(s, members[s], kPerCluster, own);
    });
    std::vector<index> all;
    for (index place = 0; place < kPerCluster; ++place) {  // the most promising of each come first
      for (const std::vector<index>& some : nearest) {
        if (place >= static_cast<index>(some.size()) || tried_[some[place]] != 0) continue;
        tried_[some[place]] = 1;
        all.push_back(some[place]);
      }
    }
    return all;
  }

  std::vector<index> near_middle(index s, const std::vector<index>& members, index count,
                                 Work& work) const {
    const index d = x_.cols;
    double heaviest = 0, least = std::numeric_limits<double>::infinity();
    for (const index i : members) {
      heaviest = std::max(heaviest, weights_[i]);
      if (first_[i] > 0) least = std::min(least, static_cast<double>(first_[i]));
    }
    if (!(heaviest > 0)) return {};
    std::vector<double> sum(static_cast<std::size_t>(d), 0.0);
    double total = 0;
    for (const index i : members) {
      work.spend(2 * d);
      const double distance = static_cast<double>(first_[i]);
      const double pull = distance > 0 ? weights_[i] / heaviest * (least / distance) : 0.0;
      for (index t = 0; t < d; ++t) sum[t] += pull * static_cast<double>(x_.row(i)[t]);
      total += pull;
    }
    if (!(total > 0) || !std::isfinite(total)) return {};
    std::vector<T> middle(static_cast<std::size_t>(d));
    for (index t = 0; t < d; ++t) middle[t] = static_cast<T>(sum[t] / total);
    std::vector<std::pair<T, index>> order;
    for (const index i : members) {
      work.spend(d);
      if (i == medoids_[s]) continue;
      const T* const to = x_.row(i);
      T distance;
      distances_to(middle.data(), &to, 1, d, &distance);
      order.emplace_back(distance, i);
    }
    count = std::min(count, static_cast<index>(order.size()));
    std::partial_sort(order.begin(), order.begin() + count, order.end());
    std::vector<index> points;
    for (index c = 0; c < count; ++c) points.push_back(order[c].second);
    return points;
  }

  // As many at a time as there is room for.
  index try_all(const std::vector<index>& candidates) {
    index found = 0;
    for (std::size_t from = 0; from < candidates.size(); from += medoids_.size()) {
      const std::size_t to = std::min(from + medoids_.size(), candidates.size());
      found += try_out({candidates.begin() + static_cast<std::ptrdiff_t>(from),
                        candidates.begin() + static_cast<std::ptrdiff_t>(to)});
    }
    return found;
  }

  // Swap search over the medoids and these candidates alone.
  index try_out(std::vector<index> candidates) {
    fill_rows(k_, candidates);
    const index rows = k_ + static_cast<index>(candidates.size());
    const std::vector<index> start = slots_in_order();
    KMedoidsOptions options;
    options.init = KMedoidsOptions::Init::given;
    options.given = start.data();
    const KMedoidsSolution found =
        solve(KMedoidsProblem<T>{{rows_.get(), rows, x_.rows}, weights_, k_}, options, work_);
    std::vector<char> stays(medoids_.size(), 0);
    for (const index r : found.medoids) {
      if (r < k_) stays[r] = 1;
    }
    index free = 0;
    for (const index r : found.medoids) {
      if (r < k_) continue;
      while (stays[free] != 0) ++free;
      medoids_[free] = candidates[r - k_];
      std::copy(row(r), row(r) + x_.rows, rows_.get() + free * x_.rows);
      stays[free] = 1;
    }
    return found.swaps;
  }

  MatrixView<T> x_;
  const double* weights_;
  index k_;
  std::uint64_t seed_;
  std::vector<index> medoids_;
  Work& work_;
  std::vector<std::int32_t> slots_;  // of each point: its medoid,
  std::vector<T> first_, second_;    // and its distances to that and the second one
  std::vector<char> tried_;          // of each point: whether it has been a candidate
  BigArray<T> rows_;                 // of distances: the medoids', then the candidates'
};

}  // namespace pyfast
