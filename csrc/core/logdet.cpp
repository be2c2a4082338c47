#include "core/logdet.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace pyfast {

namespace {

constexpr double kTaken = -1;
constexpr index kBlock = kRoughRows;      // rows brought forward together, by at most
constexpr index kStride = kRoughColumns;  // chosen vectors shown to them at once, by at most
constexpr index kLikely = 4;              // rows brought up to date before a floor is known

// A sieve is worth its second pass from this many numbers on, and safe between these lengths: no
// float product overflows, and what is flushed to zero is nothing beside the longest.
constexpr index kSieveFrom = 1 << 13;
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
  const auto d = static_cast<double>(candidates_->dims());
  double logdet = problem.before.count > 0 ? problem.before.logdet : d * std::log(problem.gamma);
  double least = std::numeric_limits<double>::infinity();
  for (index step = 0; step < problem.k; ++step) {
    const index i = next(token);
    const double gain = std::log1p(exact_.residual[i]);
    logdet += gain;
    least = std::min(least, gain);  // a tie's second member may be larger by the tolerance
    answer.picks[step] = i;
    answer.gains[step] = least;
    // The last one serves nobody but the answer.
    if (step + 1 < problem.k || answer.vectors != nullptr || answer.factor != nullptr) choose(i);
  }
  write(answer, token);
  return logdet;
}

// The new vectors and the whole factor, if they are wanted.
void LogDetGreedy::write(const LogDetAnswer& answer, Token& token) {
  const index d = candidates_->dims();
  for (index s = 0; s < problem_->k && answer.vectors != nullptr; ++s) {
    token.spend(d);
    if (narrow_) {
      std::copy_n(narrow_column(problem_->before.count + s), d, answer.vectors + s * d);
    } else {
      std::copy_n(columns_.data() + s * d, d, answer.vectors + s * d);
    }
  }
  for (index s = 0; s < capacity_ && answer.factor != nullptr; ++s) {
    token.spend(4 * capacity_);  // down a column
    for (index q = 0; q < capacity_; ++q) {
      answer.factor[s * capacity_ + q] = q < s    ? factor_[q * capacity_ + s]
                                         : q == s ? pivots_[s]
                                                  : 0.0;
    }
  }
}

void LogDetGreedy::Layer::start(index n, index capacity, const std::vector<double>& lengths) {
  known.assign(static_cast<std::size_t>(n), 0);
  residual = lengths;
  const auto needed = static_cast<std::size_t>(n * capacity);
  if (needed > room) {
    coefficients.reset(new double[needed]);
    room = needed;
  }
}

void LogDetGreedy::start(Token& token) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  ratio_ = problem_->scale / problem_->gamma;
  chosen_ = before.count;
  capacity_ = before.count + problem_->k;
  lengths_.resize(static_cast<std::size_t>(n));
  resize(factor_, capacity_ * capacity_, token);
  pivots_.resize(static_cast<std::size_t>(capacity_));
  narrow_ = candidates_->narrow();
  // A quarter of a page past whole pages, so that columns do not compete for the same cache lines.
  narrow_stride_ = (d + 1023) / 1024 * 1024 + 256;
  if (narrow_) {
    resize(narrow_columns_, capacity_ * narrow_stride_, token);
  } else {
    resize(columns_, problem_->k * d, token);
  }
  products_.resize(static_cast<std::size_t>(std::max(threads_, 1)));
  for (index s = 0; s < before.count; ++s) {
    pivots_[s] = before.factor[s * before.count + s];
    for (index q = 0; q < s; ++q) factor_[q * capacity_ + s] = before.factor[s * before.count + q];
  }
  const double work = static_cast<double>(n) * static_cast<double>(d);
  in_parallel((n + kBlock - 1) / kBlock, work, token, [&](index b, int, Token& t) {
    const index first = b * kBlock, count = std::min(kBlock, n - first);
    t.spend(count * d);
    candidates_->squared_norms(first, count, lengths_.data() + first);
  });
  for (index i = 0; i < n; ++i) {
    lengths_[i] *= ratio_;
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
  sieved_ = narrow_ && n * d >= kSieveFrom && longest > kSieveShortest;
  chosen_lengths_ = 0;
  sieve_errors_.assign(1, 0.0);
  for (index s = 0; s < before.count && sieved_; ++s) {
    // (L L^T)_ss = 1 + the length, which this is an upper bound of.
    double length = 0;
    for (index q = 0; q <= s; ++q) {
      length += before.factor[s * before.count + q] * before.factor[s * before.count + q];
    }
    longest = std::max(longest, length / ratio_);
    count_in(length);
  }
  sieved_ = sieved_ && longest < kSieveLongest;
  if (!sieved_) return;
  sieve_.start(n, capacity_, lengths_);
  least_.resize(static_cast<std::size_t>(n));
  for (index s = 0; s < before.count; ++s) {
    std::copy_n(before.vectors + s * d, d, narrow_column(s));
  }
}

index LogDetGreedy::next(Token& token) {
  if (chosen_ == 0) return lowest_tied(token);  // all are up to date
  Layer& first = sieved_ ? sieve_ : exact_;
  floor_ = 0;
  list_likely(first);
  bring_forward(first, token);
  list(first, [&](index i) { return bound_[i] > floor_; });
  bring_forward(first, token);
  if (sieved_) {
    list(exact_, [&](index i) { return bound_[i] >= floor_; });
    bring_forward(exact_, token);
  }
  return lowest_tied(token);
}

// What r_i is at least, if that is known.
double LogDetGreedy::at_least(index i) const {
  if (exact_.known[i] == chosen_) return exact_.residual[i];
  return sieved_ && sieve_.known[i] == chosen_ ? least_[i] : kTaken;
}

// Workers see it when they see it: it saves work and changes nothing else.
void LogDetGreedy::raise_floor(double value) {
  double floor = floor_.load(std::memory_order_relaxed);
  while (floor < value && !floor_.compare_exchange_weak(floor, value, std::memory_order_relaxed)) {
  }
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

// Brings the listed ones forward until each is up to date or known not to beat the floor.
void LogDetGreedy::bring_forward(Layer& layer, Token& token) {
  const auto count = static_cast<index>(listed_.size());
  if (count == 0) return;
  // A block is read together, so those that missed as much stand side by side.
  const auto before = [&](index i, index j) { return layer.known[i] < layer.known[j]; };
  if (!std::is_sorted(listed_.begin(), listed_.end(), before)) {
    std::stable_sort(listed_.begin(), listed_.end(), before);
  }
  double missed = 0;
  for (const index i : listed_) missed += static_cast<double>(chosen_ - layer.known[i]);
  const index blocks = (count + kBlock - 1) / kBlock;
  in_parallel(blocks, missed * static_cast<double>(candidates_->dims()), token,
              [&](index b, int worker, Token& t) {
                catch_up(layer, listed_.data() + b * kBlock, std::min(kBlock, count - b * kBlock),
                         products_[worker], t);
              });
}

// Shows rows, sorted by what they know, the chosen vectors that they have missed: a stride after
// the other while the rows are in cache, and fewer rows each time.
void LogDetGreedy::catch_up(Layer& layer, index* rows, index count, std::vector<double>& products,
                            Token& token) {
  for (;;) {
    const double floor = floor_.load(std::memory_order_relaxed);
    count =
        std::remove_if(rows, rows + count,
                       [&](index i) { return layer.known[i] == chosen_ || bound_[i] <= floor; }) -
        rows;
    if (count == 0) return;
    const index from = layer.known[rows[0]];
    const index to = std::min(chosen_, from + kStride);
    index behind = 0;
    while (behind < count && layer.known[rows[behind]] < to) ++behind;
    advance(layer, rows, behind, from, to, products, token);
    for (index r = 0; r < behind; ++r) raise_floor(at_least(rows[r]));
  }
}

// The best value is known by now: nothing above it has a bound that would let it be larger.
index LogDetGreedy::lowest_tied(Token& token) {
  double best = 0;
  for (index i = 0; i < candidates_->count(); ++i) {
    if (exact_.known[i] == chosen_ && bound_[i] != kTaken)
      best = std::max(best, exact_.residual[i]);
  }
  const double enough = best * (1 - kLogDetTie);
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

// Shows the chosen vectors `from` .. `to - 1` to `count` rows that know `from` or more of them.
void LogDetGreedy::advance(Layer& layer, const index* rows, index count, index from, index to,
                           std::vector<double>& products, Token& token) {
  const index d = candidates_->dims(), missed = to - from;
  token.spend(count * missed * (d + to));
  products.resize(static_cast<std::size_t>(count * missed));
  if (&layer == &sieve_) {
    float rough[kBlock * kStride];
    candidates_->rough_dots(rows, count, narrow_column(from), missed, narrow_stride_, rough,
                            missed);
    std::copy_n(rough, count * missed, products.data());
  } else {
    const LogDetState& before = problem_->before;
    const index old = std::clamp<index>(before.count - from, 0, missed);
    if (old > 0) {
      candidates_->dots(rows, count, before.vectors + from * d, old, products.data(), missed);
    }
    if (missed > old && narrow_) {
      candidates_->dots(rows, count, narrow_column(from + old), missed - old, narrow_stride_,
                        products.data() + old, missed);
    } else if (missed > old) {
      candidates_->dots(rows, count, columns_.data() + (from + old - before.count) * d,
                        missed - old, products.data() + old, missed);
    }
  }
  for (index r = 0; r < count; ++r) absorb(layer, rows[r], from, to, products.data() + r * missed);
}

// Forward substitution with L: products[s] = w_{from + s}^T v_i become entries of u_i, but for
// those that are known already.
void LogDetGreedy::absorb(Layer& layer, index i, index from, index to, double* products) {
  const index known = layer.known[i];
  products += known - from;
  double* u = layer.coefficients.get() + i * capacity_;
  double residual = layer.residual[i];
  for (index s = 0; s < to - known; ++s) products[s] *= ratio_;
  for (index q = 0; q < to; ++q) {
    if (q >= known) {
      u[q] = products[q - known] / pivots_[q];
      const double loss = u[q] * u[q];  // not a number where a state's numbers overflow
      residual = residual > loss ? residual - loss : 0.0;
    }
    const index first = std::max(q + 1, known);
    const double* row = factor_.data() + q * capacity_ + first;
    double* left = products + first - known;
    for (index s = 0; s < to - first; ++s) left[s] -= u[q] * row[s];
  }
  layer.residual[i] = residual;
  layer.known[i] = to;
  if (&layer == &exact_) {
    bound_[i] = std::min(bound_[i], residual);
    return;
  }
  const double length = lengths_[i], root = std::sqrt(length - residual), error = sieve_error(i);
  const double low = std::max(root - error, 0.0), high = root + error;
  bound_[i] = std::min(bound_[i], length - low * low + kRounding * length);
  least_[i] = length - high * high - kRounding * length;
}

// How far the sieve's u_i may be from u_i: L^{-1}, which shortens every vector, times the errors of
// its products, at most rough_error |v_i| |w_s| each but for what is flushed to zero.
double LogDetGreedy::sieve_error(index i) const {
  const index known = sieve_.known[i];
  return sieve_errors_[known] * std::sqrt(lengths_[i]) +
         ratio_ * kRoughLeast * static_cast<double>(candidates_->dims() * known);
}

void LogDetGreedy::count_in(double length) {
  chosen_lengths_ += length;
  sieve_errors_.push_back(rough_error(candidates_->dims()) * std::sqrt(chosen_lengths_));
}

void LogDetGreedy::choose(index i) {
  const index d = candidates_->dims();
  const double* u = exact_.coefficients.get() + i * capacity_;
  for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = u[q];
  pivots_[chosen_] = std::sqrt(1 + exact_.residual[i]);
  if (narrow_) {
    candidates_->copy(i, narrow_column(chosen_));
  } else {
    candidates_->copy(i, columns_.data() + (chosen_ - problem_->before.count) * d);
  }
  if (sieved_) count_in(lengths_[i]);
  bound_[i] = kTaken;
  ++chosen_;
}

template <class Body>
void LogDetGreedy::in_parallel(index count, double operations, Token& token, Body&& body) {
  // A vector unit does about 16 multiplications where other loops do one operation.
  const int threads = worthwhile_threads(threads_, operations / 16);
  if (threads > 1 && count > 1) {
    parallel_for(count, threads, *cancel_, body);
  } else {
    for (index item = 0; item < count; ++item) body(item, 0, token);
  }
}

}  // namespace pyfast
