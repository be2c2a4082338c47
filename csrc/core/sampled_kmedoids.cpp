#include "core/sampled_kmedoids.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/big_array.hpp"
#include "core/distances.hpp"
#include "core/pairwise.hpp"
#include "core/philox.hpp"
#include "core/row_copies.hpp"

namespace pyfast {

WeightedSample weighted_sample(const double* weights, index n, index draws, index least,
                               std::uint64_t seed, const std::vector<index>& extra) {
  const double heaviest = *std::max_element(weights, weights + n);
  const auto weight = [&](index i) { return heaviest > 0 ? weights[i] / heaviest : 1.0; };
  double total = 0;
  index last = 0;  // that can be drawn
  for (index i = 0; i < n; ++i) {
    total += weight(i);
    if (weight(i) > 0) last = i;
  }
  const double part = total / static_cast<double>(draws);
  Random random(seed, Purpose::sample, 0);
  std::vector<index> times(static_cast<std::size_t>(n), 0);
  double passed = 0;  // weight of the points before i
  index i = 0;
  for (index s = 0; s < draws; ++s) {
    const double drawn = (static_cast<double>(s) + random.uniform()) * part;
    while (i < last && passed + weight(i) <= drawn) passed += weight(i++);
    ++times[i];
  }

  std::vector<char> taken(static_cast<std::size_t>(n), 0);
  index count = 0;
  const auto take = [&](index point) {
    count += taken[point] == 0 ? 1 : 0;
    taken[point] = 1;
  };
  for (index p = 0; p < n; ++p) {
    if (times[p] > 0) take(p);
  }
  for (const index p : extra) take(p);
  for (index p = 0; p < n && count < least; ++p) take(p);
  WeightedSample sample;
  for (index p = 0; p < n; ++p) {
    if (taken[p] == 0) continue;
    sample.points.push_back(p);
    sample.weights.push_back(static_cast<double>(times[p]) * part * (heaviest > 0 ? heaviest : 0));
  }
  return sample;
}

namespace {

struct Team {
  int threads;
  Cancel& cancel;
  Token& token;

  template <class Body>
  void each(index count, Body&& body) const {
    if (threads > 1) {
      parallel_for(count, threads, cancel, [&](index item, int, Token& own) { body(item, own); });
    } else {
      for (index item = 0; item < count; ++item) body(item, token);
    }
  }
};

// A set of medoids of all points and the rows of their distances, with room for as many candidates.
template <class T>
class Polish {
 public:
  Polish(MatrixView<T> x, const double* weights, std::vector<index> medoids, const Team& team)
      : x_(x),
        weights_(weights),
        medoids_(std::move(medoids)),
        team_(team),
        slots_(static_cast<std::size_t>(x.rows)),
        tried_(static_cast<std::size_t>(x.rows), 0),
        rows_(big_array<T>(2 * k() * x.rows)) {
    touch(rows_.get(), 2 * k() * x.rows, team.token);
    fill_rows(0, medoids_);
  }

  // Rounds of exact swaps; how many there were. No point is tried twice.
  index run() {
    constexpr int kMostRounds = 10, kPerCluster = 4;
    index swaps = 0;
    for (int round = 0; round < kMostRounds; ++round) {
      const std::vector<index> candidates = near_middles(kPerCluster);
      index found = 0;
      for (std::size_t from = 0; from < candidates.size(); from += medoids_.size()) {
        const std::size_t to = std::min(from + medoids_.size(), candidates.size());
        found += try_out({candidates.begin() + static_cast<std::ptrdiff_t>(from),
                          candidates.begin() + static_cast<std::ptrdiff_t>(to)});
      }
      if (found == 0) break;
      swaps += found;
    }
    return swaps;
  }

  // Medoids ascending, with their cost and the labels.
  void finish(KMedoidsSolution& solution, index* labels) {
    solution.medoids = medoids_;
    std::sort(solution.medoids.begin(), solution.medoids.end());
    if (solution.medoids != medoids_) {
      medoids_ = solution.medoids;
      fill_rows(0, medoids_);
    }
    assign();
    solution.cost = 0;
    for (index i = 0; i < x_.rows; ++i) {
      labels[i] = slots_[i];
      solution.cost += weights_[i] * static_cast<double>(row(slots_[i])[i]);
    }
  }

 private:
  index k() const { return static_cast<index>(medoids_.size()); }
  const T* row(index r) const { return rows_.get() + r * x_.rows; }

  // Rows first, first + 1, ... = the distances of `points` to all points.
  void fill_rows(index first, const std::vector<index>& points) {
    distance_rows(x_, points, rows_.get() + first * x_.rows, team_.threads, team_.cancel,
                  team_.token);
  }

  void assign() {
    pyfast::assign(KMedoidsProblem<T>{{rows_.get(), k(), x_.rows}, weights_, k()}, rows_in_order(),
                   team_.token, slots_.data());
  }

  std::vector<index> rows_in_order() const {
    std::vector<index> rows(medoids_.size());
    std::iota(rows.begin(), rows.end(), index{0});
    return rows;
  }

  // The points of each cluster nearest to one step of Weiszfeld's iteration from its medoid towards
  // the geometric median.
  std::vector<index> near_middles(index per_cluster) {
    assign();
    std::vector<std::vector<index>> members(medoids_.size());
    for (index i = 0; i < x_.rows; ++i) members[slots_[i]].push_back(i);
    std::vector<std::vector<index>> nearest(medoids_.size());
    team_.each(k(), [&](index s, Token& token) {
      nearest[s] = near_middle(s, members[s], per_cluster, token);
    });
    std::vector<index> all;
    for (index place = 0; place < per_cluster; ++place) {  // the most promising of each come first
      for (const std::vector<index>& some : nearest) {
        if (place >= static_cast<index>(some.size()) || tried_[some[place]] != 0) continue;
        tried_[some[place]] = 1;
        all.push_back(some[place]);
      }
    }
    return all;
  }

  std::vector<index> near_middle(index s, const std::vector<index>& members, index count,
                                 Token& token) const {
    const index d = x_.cols;
    std::vector<double> sum(static_cast<std::size_t>(d), 0.0);
    double total = 0;
    for (const index i : members) {
      token.spend(2 * d);
      const double distance = static_cast<double>(row(s)[i]);
      const double pull = distance > 0 ? weights_[i] / distance : 0.0;
      for (index t = 0; t < d; ++t) sum[t] += pull * static_cast<double>(x_.row(i)[t]);
      total += pull;
    }
    if (!(total > 0) || !std::isfinite(total)) return {};
    std::vector<T> middle(static_cast<std::size_t>(d));
    for (index t = 0; t < d; ++t) middle[t] = static_cast<T>(sum[t] / total);
    std::vector<std::pair<T, index>> order;
    for (const index i : members) {
      token.spend(d);
      if (i == medoids_[s]) continue;
      order.emplace_back(squared_distance(middle.data(), x_.row(i), d), i);
    }
    count = std::min(count, static_cast<index>(order.size()));
    std::partial_sort(order.begin(), order.begin() + count, order.end());
    std::vector<index> points;
    for (index c = 0; c < count; ++c) points.push_back(order[c].second);
    return points;
  }

  // Swap search over the medoids and these candidates alone.
  index try_out(std::vector<index> candidates) {
    fill_rows(k(), candidates);
    const index rows = k() + static_cast<index>(candidates.size());
    const KMedoidsSolution found =
        swap_search(KMedoidsProblem<T>{{rows_.get(), rows, x_.rows}, weights_, k()},
                    rows_in_order(), Search::eager, team_.threads, team_.cancel, team_.token);
    std::vector<char> stays(medoids_.size(), 0);
    for (const index r : found.medoids) {
      if (r < k()) stays[r] = 1;
    }
    index free = 0;
    for (const index r : found.medoids) {
      if (r < k()) continue;
      while (stays[free] != 0) ++free;
      medoids_[free] = candidates[r - k()];
      std::copy(row(r), row(r) + x_.rows, rows_.get() + free * x_.rows);
      stays[free] = 1;
    }
    return found.swaps;
  }

  MatrixView<T> x_;
  const double* weights_;
  std::vector<index> medoids_;
  const Team& team_;
  std::vector<index> slots_;  // of each point: its medoid
  std::vector<char> tried_;   // of each point: whether it has been a candidate
  BigArray<T> rows_;          // of distances: the medoids', then the candidates'
};

template <class T>
KMedoidsSolution search_sample(MatrixView<T> x, const double* weights, index k, index sample_size,
                               const KMedoidsOptions& options, const Team& team) {
  std::vector<index> given;
  if (options.init == KMedoidsOptions::Init::given) given.assign(options.given, options.given + k);
  const WeightedSample sample =
      weighted_sample(weights, x.rows, sample_size, k, options.seed, given);
  const auto m = static_cast<index>(sample.points.size());
  const std::vector<T> rows = gather(x, sample.points, team.token);
  KMedoidsOptions own = options;
  for (index& point : given) {
    point =
        std::lower_bound(sample.points.begin(), sample.points.end(), point) - sample.points.begin();
  }
  own.given = given.data();
  KMedoidsSolution found =
      kmedoids_of_points(MatrixView<T>{rows.data(), m, x.cols}, sample.weights.data(), k, own,
                         team.threads, team.cancel, team.token, sample.points.data(), nullptr);
  for (index& medoid : found.medoids) medoid = sample.points[medoid];
  return found;
}

}  // namespace

template <class T>
KMedoidsSolution sampled_kmedoids(MatrixView<T> x, const double* weights, index k,
                                  index sample_size, const KMedoidsOptions& options, int threads,
                                  Cancel& cancel, Token& token, index* labels) {
  const Team team{threads, cancel, token};
  KMedoidsSolution solution = search_sample(x, weights, k, sample_size, options, team);
  Polish<T> polish(x, weights, solution.medoids, team);
  solution.swaps += polish.run();
  polish.finish(solution, labels);
  return solution;
}

#define PYFAST_INSTANTIATE(T)                                                              \
  template KMedoidsSolution sampled_kmedoids(MatrixView<T>, const double*, index, index,   \
                                             const KMedoidsOptions&, int, Cancel&, Token&, \
                                             index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
