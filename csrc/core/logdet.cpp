#include "core/logdet.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace pyfast {

namespace {

constexpr double kTaken = -1;
constexpr index kBlock = 16;   // rows brought forward together, by at most
constexpr index kStride = 12;  // chosen vectors: what the cache holds beside them
constexpr index kLikely = 4;   // rows brought up to date before a floor is known

// A sieve is worth its second pass from this many numbers on, and safe between these lengths: no
// float product overflows, and what is flushed to zero is nothing beside the longest.
constexpr index kSieveFrom = 1 << 18;
constexpr double kSieveShortest = 1e-20, kSieveLongest = 1e30;
// More than float64's own rounding in any r_i, relative to lengths_[i].
constexpr double kRounding = 1e-12;

}  // namespace

double LogDetGreedy::solve(const LogDetProblem& problem, const LogDetAnswer& answer, int threads,
                           Cancel& cancel, Token& token) {
  problem_ = &problem;
  candidates_ = problem.candidates;
  threads_ = threads;
  cancel_ = &cancel;
  start(token);
  const index d = candidates_->dims();
  double logdet = problem.before.count > 0 ? problem.before.logdet
                                           : static_cast<double>(d) * std::log(problem.gamma);
  double least = std::numeric_limits<double>::infinity();
  for (index step = 0; step < problem.k; ++step) {
    const index i = next(token);
    const double gain = std::log1p(exact_.residual[i]);
    logdet += gain;
    least = std::min(least, gain);  // a tie's second member may be larger by the tolerance
    answer.picks[step] = i;
    answer.gains[step] = least;
    choose(i);
  }
  if (answer.vectors != nullptr) std::copy_n(columns_.data(), problem.k * d, answer.vectors);
  if (answer.factor != nullptr) {
    for (index s = 0; s < capacity_; ++s) {
      for (index q = 0; q < capacity_; ++q) {
        answer.factor[s * capacity_ + q] = q < s    ? factor_[q * capacity_ + s]
                                           : q == s ? pivots_[s]
                                                    : 0.0;
      }
    }
  }
  return logdet;
}

void LogDetGreedy::Layer::start(index n, index capacity, const std::vector<double>& lengths) {
  known.assign(static_cast<std::size_t>(n), 0);
  residual = lengths;
  coefficients.resize(static_cast<std::size_t>(n * capacity));
}

void LogDetGreedy::start(Token& token) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  ratio_ = problem_->scale / problem_->gamma;
  chosen_ = before.count;
  capacity_ = before.count + problem_->k;
  lengths_.resize(static_cast<std::size_t>(n));
  factor_.resize(static_cast<std::size_t>(capacity_ * capacity_));
  pivots_.resize(static_cast<std::size_t>(capacity_));
  columns_.resize(static_cast<std::size_t>(problem_->k * d));
  products_.resize(static_cast<std::size_t>(std::max(threads_, 1)));
  for (index s = 0; s < before.count; ++s) {
    pivots_[s] = before.factor[s * before.count + s];
    for (index q = 0; q < s; ++q) factor_[q * capacity_ + s] = before.factor[s * before.count + q];
  }
  in_parallel((n + kBlock - 1) / kBlock, token, [&](index b, int, Token& t) {
    for (index i = b * kBlock; i < std::min(n, (b + 1) * kBlock); ++i) {
      t.spend(d);
      lengths_[i] = ratio_ * candidates_->squared_norm(i);
    }
  });
  for (index i = 0; i < n; ++i) {
    if (!std::isfinite(lengths_[i])) {
      throw std::range_error("the squared length of candidate " + std::to_string(i) +
                             " times scale / gamma overflows; scale the vectors down");
    }
  }
  bound_ = lengths_;
  exact_.start(n, capacity_, lengths_);
  start_sieve();
}

void LogDetGreedy::start_sieve() {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  double longest = *std::max_element(lengths_.begin(), lengths_.end()) / ratio_;
  sieved_ = candidates_->has_rough() && n * d >= kSieveFrom && longest > kSieveShortest;
  chosen_lengths_.assign(1, 0.0);
  for (index s = 0; s < before.count && sieved_; ++s) {
    // (L L^T)_ss = 1 + the length, which this is an upper bound of.
    double length = 0;
    for (index q = 0; q <= s; ++q) {
      length += before.factor[s * before.count + q] * before.factor[s * before.count + q];
    }
    longest = std::max(longest, length / ratio_);
    chosen_lengths_.push_back(chosen_lengths_.back() + length);
  }
  sieved_ = sieved_ && longest < kSieveLongest;
  if (!sieved_) return;
  sieve_.start(n, capacity_, lengths_);
  rough_columns_.resize(static_cast<std::size_t>(capacity_ * d));
  std::transform(before.vectors, before.vectors + before.count * d, rough_columns_.begin(),
                 [](double x) { return static_cast<float>(x); });
}

index LogDetGreedy::next(Token& token) {
  Layer& first = sieved_ ? sieve_ : exact_;
  list_likely(first);
  bring_forward(first, kTaken, token);
  double floor = highest_floor(first);
  list(first, [&](index i) { return bound_[i] > floor; });
  bring_forward(first, floor, token);
  if (sieved_) {
    floor = highest_floor(first);
    list(exact_, [&](index i) { return bound_[i] >= floor; });
    bring_forward(exact_, kTaken, token);
  }
  return lowest_tied(token);
}

// What r_i is at least, if the layer is up to date with it.
double LogDetGreedy::at_least(const Layer& layer, index i) const {
  if (bound_[i] == kTaken) return kTaken;
  if (exact_.known[i] == chosen_) return exact_.residual[i];
  if (layer.known[i] < chosen_) return kTaken;
  const double root = std::sqrt(lengths_[i] - sieve_.residual[i]) + sieve_error(i);
  return lengths_[i] - root * root - kRounding * lengths_[i];
}

double LogDetGreedy::highest_floor(const Layer& layer) const {
  double floor = 0;
  const index n = candidates_->count();
  for (index i = 0; i < n; ++i) {
    if (bound_[i] > floor) floor = std::max(floor, at_least(layer, i));
  }
  return floor;
}

// Lists those of them that the layer is not up to date with.
template <class Wanted>
void LogDetGreedy::list(const Layer& layer, Wanted&& wanted) {
  listed_.clear();
  const index n = candidates_->count();
  for (index i = 0; i < n; ++i) {
    if (wanted(i) && layer.known[i] < chosen_ && exact_.known[i] < chosen_) listed_.push_back(i);
  }
}

// Lists the largest bounds of all that are cheap to bring up to date (the largest, if there is
// none): once those are, the floor is nearly the best.
void LogDetGreedy::list_likely(const Layer& layer) {
  const index n = candidates_->count();
  index top[kLikely];
  index count = 0, largest = -1;
  for (index i = 0; i < n; ++i) {
    if (bound_[i] == kTaken) continue;
    if (largest < 0 || bound_[i] > bound_[largest]) largest = i;
    if (layer.known[i] < chosen_ - kStride) continue;
    if (count == kLikely && bound_[i] <= bound_[top[count - 1]]) continue;
    index at = count < kLikely ? count++ : count - 1;
    for (; at > 0 && bound_[top[at - 1]] < bound_[i]; --at) top[at] = top[at - 1];
    top[at] = i;
  }
  if (count == 0) top[count++] = largest;
  listed_.assign(top, top + count);
}

// Brings the listed ones forward, a stride of vectors at a time and the farthest behind first,
// until each is up to date or known not to beat `best` or another of them.
void LogDetGreedy::bring_forward(Layer& layer, double best, Token& token) {
  for (;;) {
    for (const index i : listed_) best = std::max(best, at_least(layer, i));
    index from = chosen_;
    std::size_t left = 0;
    for (const index i : listed_) {
      if (layer.known[i] == chosen_ || bound_[i] <= best) continue;
      listed_[left++] = i;
      from = std::min(from, layer.known[i]);
    }
    listed_.resize(left);
    if (left == 0) return;
    const auto behind = std::partition(listed_.begin(), listed_.end(),
                                       [&](index i) { return layer.known[i] == from; });
    const index count = behind - listed_.begin();
    const index to = std::min(chosen_, (from / kStride + 1) * kStride);
    in_parallel((count + kBlock - 1) / kBlock, token, [&](index b, int worker, Token& t) {
      advance(layer, listed_.data() + b * kBlock, std::min(kBlock, count - b * kBlock), from, to,
              products_[worker], t);
    });
  }
}

// The best value is known by now: nothing above it has a bound that would let it be larger.
index LogDetGreedy::lowest_tied(Token& token) {
  const double enough = highest_floor(exact_) * (1 - kLogDetTie);
  const index n = candidates_->count();
  for (index i = 0; i < n; ++i) {
    if (bound_[i] < enough) continue;  // chosen ones too: enough >= 0 > kTaken
    if (exact_.known[i] < chosen_) {
      advance(exact_, &i, 1, exact_.known[i], chosen_, products_[0], token);
    }
    if (exact_.residual[i] >= enough) return i;
  }
  throw std::range_error("the state's factor is not that of its vectors");
}

// Shows the chosen vectors `from` .. `to - 1` to `count` rows that have seen those before.
void LogDetGreedy::advance(Layer& layer, const index* rows, index count, index from, index to,
                           std::vector<double>& products, Token& token) {
  const index d = candidates_->dims(), missed = to - from;
  token.spend(count * missed * (d + to));
  products.resize(static_cast<std::size_t>(count * missed));
  if (&layer == &sieve_) {
    float rough[kBlock * kStride];
    candidates_->rough_dots(rows, count, rough_columns_.data() + from * d, missed, rough, missed);
    std::copy_n(rough, count * missed, products.data());
  } else {
    const LogDetState& before = problem_->before;
    const index old = std::clamp<index>(before.count - from, 0, missed);
    if (old > 0) {
      candidates_->dots(rows, count, before.vectors + from * d, old, products.data(), missed);
    }
    if (missed > old) {
      candidates_->dots(rows, count, columns_.data() + (from + old - before.count) * d,
                        missed - old, products.data() + old, missed);
    }
  }
  for (index r = 0; r < count; ++r) absorb(layer, rows[r], to, products.data() + r * missed);
}

// Forward substitution with L: products[s] = w_{known + s}^T v_i become entries of u_i.
void LogDetGreedy::absorb(Layer& layer, index i, index to, double* products) {
  const index from = layer.known[i];
  double* u = layer.coefficients.data() + i * capacity_;
  double residual = layer.residual[i];
  for (index s = 0; s < to - from; ++s) products[s] *= ratio_;
  for (index q = 0; q < to; ++q) {
    if (q >= from) {
      u[q] = products[q - from] / pivots_[q];
      const double loss = u[q] * u[q];  // not a number where a state's numbers overflow
      residual = residual > loss ? residual - loss : 0.0;
    }
    const index first = std::max(q + 1, from);
    const double* row = factor_.data() + q * capacity_ + first;
    double* left = products + first - from;
    for (index s = 0; s < to - first; ++s) left[s] -= u[q] * row[s];
  }
  layer.residual[i] = residual;
  layer.known[i] = to;
  double bound = residual;
  if (&layer == &sieve_) {
    const double root = std::max(std::sqrt(lengths_[i] - residual) - sieve_error(i), 0.0);
    bound = lengths_[i] - root * root + kRounding * lengths_[i];
  }
  bound_[i] = std::min(bound_[i], bound);
}

// How far the sieve's u_i may be from u_i: L^{-1}, which shortens every vector, times the errors of
// its products, at most rough_error |v_i| |w_s| each but for what is flushed to zero.
double LogDetGreedy::sieve_error(index i) const {
  const index known = sieve_.known[i];
  return rough_error(candidates_->dims()) * std::sqrt(lengths_[i] * chosen_lengths_[known]) +
         ratio_ * kRoughLeast * static_cast<double>(candidates_->dims() * known);
}

void LogDetGreedy::choose(index i) {
  const index d = candidates_->dims();
  const double* u = exact_.coefficients.data() + i * capacity_;
  for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = u[q];
  pivots_[chosen_] = std::sqrt(1 + exact_.residual[i]);
  double* column = columns_.data() + (chosen_ - problem_->before.count) * d;
  candidates_->copy(i, column);
  if (sieved_) {
    std::transform(column, column + d, rough_columns_.data() + chosen_ * d,
                   [](double x) { return static_cast<float>(x); });
    chosen_lengths_.push_back(chosen_lengths_.back() + lengths_[i]);
  }
  bound_[i] = kTaken;
  ++chosen_;
}

template <class Body>
void LogDetGreedy::in_parallel(index count, Token& token, Body&& body) {
  if (threads_ > 1 && count > 1) {
    parallel_for(count, threads_, *cancel_, body);
  } else {
    for (index item = 0; item < count; ++item) body(item, 0, token);
  }
}

}  // namespace pyfast
