#include "core/kmedoids/sampled.hpp"

#include <algorithm>
#include <cmath>

#include "core/kmedoids/kmedoids.hpp"
#include "core/kmedoids/polish.hpp"
#include "core/run/memory.hpp"
#include "core/run/random.hpp"

namespace pyfast {

namespace {

// Points that weigh a part or more: certain to be drawn, and out of the lottery that the others are
// in. Without them the parts get smaller, and other points may weigh one.
struct Lottery {
  std::vector<char> certain;
  double part = 0;  // what each of the other draws stands for
  index draws = 0;
};

template <class Weight>
Lottery lottery_of(index n, index draws, Weight&& weight) {
  Lottery lottery{std::vector<char>(static_cast<std::size_t>(n), 0), 0, draws};
  for (bool more = true; more;) {
    double total = 0;
    for (index i = 0; i < n; ++i) total += lottery.certain[i] != 0 ? 0.0 : weight(i);
    lottery.part = lottery.draws > 0 ? total / static_cast<double>(lottery.draws) : 0;
    more = false;
    for (index i = 0; i < n && lottery.part > 0 && lottery.draws > 0; ++i) {
      if (lottery.certain[i] != 0 || weight(i) < lottery.part) continue;
      lottery.certain[i] = 1;
      --lottery.draws;
      more = true;
    }
  }
  return lottery;
}

}  // namespace

WeightedSample weighted_sample(const double* weights, index n, index draws, index least,
                               std::uint64_t seed, std::uint32_t stream,
                               const std::vector<index>& extra) {
  const double heaviest = *std::max_element(weights, weights + n);
  const auto weight = [&](index i) { return heaviest > 0 ? weights[i] / heaviest : 1.0; };
  const Lottery lottery = lottery_of(n, draws, weight);
  const auto ticket = [&](index i) { return lottery.certain[i] != 0 ? 0.0 : weight(i); };
  index last = -1;  // that can be drawn
  for (index i = 0; i < n; ++i) {
    if (ticket(i) > 0) last = i;
  }
  Random random(seed, Purpose::sample, stream);
  std::vector<index> times(static_cast<std::size_t>(n), 0);
  double passed = 0;  // weight of the points before i
  index i = 0;
  for (index s = 0; s < lottery.draws && last >= 0; ++s) {
    const double drawn = (static_cast<double>(s) + random.uniform()) * lottery.part;
    while (i < last && passed + ticket(i) <= drawn) passed += ticket(i++);
    ++times[i];
  }

  std::vector<char> taken(lottery.certain);
  index count = std::count(taken.begin(), taken.end(), 1);
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
    const double parts =
        lottery.certain[p] != 0 ? weight(p) : static_cast<double>(times[p]) * lottery.part;
    sample.points.push_back(p);
    sample.weights.push_back(heaviest > 0 ? parts * heaviest : 0.0);
  }
  return sample;
}

namespace {

// One start, on a sample of its own. Given points are in it.
template <class T>
KMedoidsSolution search_sample(const KMedoidsPoints<T>& points, const KMedoidsOptions& options,
                               index run, Work& work) {
  KMedoidsOptions own = options;
  own.n_init = 1;
  own.sampled_above = 0;
  std::vector<index> start;
  if (run == 0 && options.init == KMedoidsOptions::Init::given) {
    start.assign(options.given, options.given + points.k);
  }
  const WeightedSample sample =
      weighted_sample(points.weights, points.x.rows, options.sample_size, points.k, options.seed,
                      static_cast<std::uint32_t>(run), start);
  const auto m = static_cast<index>(sample.points.size());
  const std::vector<T> rows = gather(points.x, sample.points, work);
  for (index& point : start) {
    point =
        std::lower_bound(sample.points.begin(), sample.points.end(), point) - sample.points.begin();
  }
  if (run > 0) {
    own.init = KMedoidsOptions::Init::given;
    start = random_subset(m, points.k, options.seed, static_cast<std::uint32_t>(run), work);
  }
  own.given = start.data();
  KMedoidsSolution found = solve(
      KMedoidsPoints<T>{
          {rows.data(), m, points.x.cols}, sample.weights.data(), points.k, sample.points.data()},
      own, work);
  for (index& medoid : found.medoids) medoid = sample.points[medoid];
  return found;
}

}  // namespace

template <class T>
KMedoidsSolution sampled_kmedoids(const KMedoidsPoints<T>& points, const KMedoidsOptions& options,
                                  Work& work, index* labels) {
  std::vector<KMedoidsSolution> found;
  for (index run = 0; run < options.n_init; ++run) {
    found.push_back(search_sample(points, options, run, work));
  }
  if (options.init == KMedoidsOptions::Init::given) {  // may be better than what a sample says
    found.emplace_back();
    found.back().medoids.assign(options.given, options.given + points.k);
  }
  std::vector<std::vector<index>> sets;
  for (const KMedoidsSolution& one : found) sets.push_back(one.medoids);
  Polish<T> polish(points, options.seed, work);
  KMedoidsSolution solution = found[polish.begin_with_best(sets)];
  solution.swaps += polish.run();
  std::vector<index> unwanted;
  if (labels == nullptr) {
    unwanted.resize(static_cast<std::size_t>(points.x.rows));
    labels = unwanted.data();
  }
  polish.finish(solution, labels);
  return solution;
}

template KMedoidsSolution sampled_kmedoids(const KMedoidsPoints<float>&, const KMedoidsOptions&,
                                           Work&, index*);
template KMedoidsSolution sampled_kmedoids(const KMedoidsPoints<double>&, const KMedoidsOptions&,
                                           Work&, index*);

}  // namespace pyfast
