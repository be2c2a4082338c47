#include "core/logdet/logdet.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/run/memory.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr double kTaken = -1;
constexpr index kBlock = kRoughRows;      // rows brought forward together, by at most
constexpr index kStride = kRoughColumns;  // chosen vectors shown to them at once, by at most
constexpr index kLikely = 4;              // rows brought up to date before a floor is known
constexpr index kMostAtOnce = 1024;       // rows worked out in more digits before the next look

// A sieve is worth its second pass from this many numbers on, and safe between these lengths: no
// float product overflows, and what is flushed to zero is nothing beside the longest.
constexpr index kSieveFrom = 1 << 13;
constexpr double kSieveShortest = 1e-20, kSieveLongest = 1e30;
// Squared lengths between these, times ratio or not, leave all products well inside double's range.
constexpr double kShortest = 1e-300, kLongest = 1e304;
constexpr double kVectors = 16;  // multiplications that a vector unit does in a nanosecond
constexpr double kRoundOff = 0x1.0p-53;
constexpr double kMostError = 1.0 / 16;  // of e kappa: see logdet.hpp
constexpr double kSieveError = 1.04;     // what an error of L that large makes of the sieve's own

}  // namespace

double LogDetGreedy::solve(const LogDetProblem& problem, const LogDetAnswer& answer, Work& work) {
  problem_ = &problem;
  candidates_ = problem.candidates;
  start(work);
  const auto d = static_cast<double>(candidates_->dims());
  double logdet = problem.before.count > 0 ? problem.before.logdet : d * std::log(problem.gamma);
  double before = std::numeric_limits<double>::infinity();
  for (index step = 0; step < problem.k; ++step) {
    const index i = next(work);
    double gain = std::log1p(settled_[i]);
    // A tie's second member may be larger, by the tolerance; by rounding alone it may not.
    if (gain > before && gain <= before * (1 + kLogDetFine)) gain = before;
    before = gain;
    logdet += gain;
    picks_.push_back(i);
    answer.picks[step] = i;
    answer.gains[step] = gain;
    // The last one serves nobody but the answer.
    if (step + 1 < problem.k || answer.vectors != nullptr || answer.factor != nullptr) {
      choose(i, work);
    }
  }
  write(answer, work);
  return logdet;
}

// The new vectors and the whole factor, if they are wanted.
void LogDetGreedy::write(const LogDetAnswer& answer, Work& work) {
  const index d = candidates_->dims();
  for (index s = 0; s < problem_->k && answer.vectors != nullptr; ++s) {
    work.spend(d);
    if (narrow_) {
      std::copy_n(narrow_column(problem_->before.count + s), d, answer.vectors + s * d);
    } else {
      std::copy_n(columns_.data() + s * d, d, answer.vectors + s * d);
    }
  }
  for (index s = 0; s < capacity_ && answer.factor != nullptr; ++s) {
    work.spend(4 * capacity_);  // down a column
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

void LogDetGreedy::start(Work& work) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  ratio_ = problem_->scale / problem_->gamma;
  chosen_ = before.count;
  capacity_ = before.count + problem_->k;
  lengths_.resize(static_cast<std::size_t>(n));
  settled_.resize(static_cast<std::size_t>(n));
  resize(factor_, capacity_ * capacity_, work);
  pivots_.resize(static_cast<std::size_t>(capacity_));
  multipliers_.resize(static_cast<std::size_t>(capacity_));
  narrow_ = candidates_->narrow();
  // A quarter of a page past whole pages, so that columns do not compete for the same cache lines.
  narrow_stride_ = (d + 1023) / 1024 * 1024 + 256;
  if (narrow_) {
    resize(narrow_columns_, capacity_ * narrow_stride_, work);
  } else {
    resize(columns_, problem_->k * d, work);
  }
  products_.resize(static_cast<std::size_t>(work.threads()));
  picks_.clear();
  wide_.reset();
  was_wide_ = false;
  regular_ = true;
  measure(work);
  start_before(work);
  bound_ = lengths_;
  for (double& bound : bound_) bound *= 1 + errors_[0];
  exact_.start(n, capacity_, lengths_);
  start_sieve();
}

// lengths_, and whether doubles can be trusted with them.
void LogDetGreedy::measure(Work& work) {
  const index n = candidates_->count(), d = candidates_->dims();
  const double numbers = static_cast<double>(n) * static_cast<double>(d);
  work.each((n + kBlock - 1) / kBlock, numbers / kVectors, [&](index b, int, Work& own) {
    const index first = b * kBlock, count = std::min(kBlock, n - first);
    own.spend(count * d);
    candidates_->squared_norms(first, count, lengths_.data() + first);
  });
  std::vector<double> row;
  for (index i = 0; i < n; ++i) {
    if (is_regular(lengths_[i])) {
      lengths_[i] *= ratio_;
      continue;
    }
    row.resize(static_cast<std::size_t>(d));
    work.spend(4 * d);
    candidates_->copy(i, row.data());
    lengths_[i] = length_of(row.data());
    if (!std::isfinite(lengths_[i])) {
      throw std::range_error("the squared length of candidate " + std::to_string(i) +
                             " times scale / gamma overflows; scale the vectors down");
    }
  }
}

bool LogDetGreedy::is_regular(double square) const {
  const double length = square * ratio_;
  return square >= kShortest && square <= kLongest && length >= kShortest && length <= kLongest;
}

// ratio v^T v of a vector whose square is not regular; not finite if it cannot be.
double LogDetGreedy::length_of(const double* v) {
  const index d = candidates_->dims();
  if (std::all_of(v, v + d, [](double x) { return x == 0; })) return 0;
  regular_ = false;
  return wide_length(v, d, problem_->gamma, problem_->scale);
}

// Counts the state's vectors in.
void LogDetGreedy::start_before(Work& work) {
  const LogDetState& before = problem_->before;
  const index d = candidates_->dims();
  for (index s = 0; s < before.count; ++s) {
    pivots_[s] = before.factor[s * before.count + s];
    for (index q = 0; q < s; ++q) factor_[q * capacity_ + s] = before.factor[s * before.count + q];
  }
  chosen_lengths_ = longest_ = 0;
  sieve_errors_.assign(1, 0.0);
  errors_.assign(1, kRoundOff * (8 + candidates_->roundings()));
  kappas_.assign(1, 0.0);
  sizes_.clear();
  shown_ = 0;
  for (index s = 0; s < before.count; ++s) {
    work.spend(4 * d);
    const double* w = before.vectors + s * d;
    const double square = simd::dot(w, w, d);
    const double length = is_regular(square) ? square * ratio_ : length_of(w);
    if (!std::isfinite(length)) {
      throw std::range_error(
          "the state's vectors are not finite, or their squared lengths overflow");
    }
    count_in(length);
  }
}

void LogDetGreedy::start_sieve() {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  const double longest = *std::max_element(lengths_.begin(), lengths_.end());
  sieved_ = narrow_ && regular_ && n * d >= kSieveFrom && longest / ratio_ > kSieveShortest &&
            std::max(longest, longest_) / ratio_ < kSieveLongest;
  longest_ = std::max(longest, longest_);
  if (!sieved_) return;
  sieve_.start(n, capacity_, lengths_);
  least_.resize(static_cast<std::size_t>(n));
  for (index s = 0; s < before.count; ++s) {
    std::copy_n(before.vectors + s * d, d, narrow_column(s));
  }
}

index LogDetGreedy::next(Work& work) {
  floor_ = 0;
  const double spare = shown_ == chosen_ ? 11 * errors_[shown_] : 0;  // 2.75 error_of()
  spare_of_length_ = spare;
  spare_of_bound_ = spare * kappas_[shown_];
  if (chosen_ > 0) {  // if not, all are up to date
    const auto wanted = [&](index i) { return may_win(i, floor_); };
    Layer& first = sieved_ ? sieve_ : exact_;
    list_likely(first);
    bring_forward(first, work);
    list(first, wanted);
    bring_forward(first, work);
    if (sieved_) {
      list(exact_, wanted);
      bring_forward(exact_, work);
    }
  }
  return settle(work);
}

// How far the residual of a candidate that knows so many vectors may be off: logdet.hpp's bound.
double LogDetGreedy::error_of(index i, double residual, index known) const {
  return 4 * errors_[known] * (lengths_[i] + kappas_[known] * residual);
}

// The closer bound, from the multipliers y, of one that is up to date.
double LogDetGreedy::close_error_of(index i) {
  const double* u = exact_.coefficients.get() + i * capacity_;
  double reach = std::sqrt(lengths_[i]);
  for (index q = chosen_ - 1; q >= 0; --q) {  // L^T y = u from below
    double left = u[q];
    const double* column = factor_.data() + q * capacity_;
    for (index s = q + 1; s < chosen_; ++s) left -= column[s] * multipliers_[s];
    multipliers_[q] = left / pivots_[q];
    reach += std::abs(multipliers_[q]) * sizes_[q];
  }
  return 1.07 * errors_[chosen_] * reach * reach;
}

// Whether i may be the pick, or tie with it, by what doubles make of its residual: that is at most
// 2 error_of() above what i is bound by, and the floor at most what they make of the best.
bool LogDetGreedy::may_win(index i, double floor) const {
  if (bound_[i] == kTaken) return false;
  const double spare = spare_of_length_ * lengths_[i] + spare_of_bound_ * bound_[i];
  return bound_[i] + spare >= floor * (1 - kLogDetTie);
}

// What r_i is at least, if that is known.
double LogDetGreedy::at_least(index i) const {
  if (shown_ < chosen_) return kTaken;
  if (exact_.known[i] == chosen_) {
    return exact_.residual[i] - error_of(i, exact_.residual[i], chosen_);
  }
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
    if (wanted(i) && layer.known[i] < shown_ && exact_.known[i] < shown_) listed_.push_back(i);
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
    if (layer.known[i] < shown_ - kStride) continue;
    if (count == kLikely && bound_[i] <= bound_[top[count - 1]]) continue;
    index at = count < kLikely ? count++ : count - 1;
    for (; at > 0 && bound_[top[at - 1]] < bound_[i]; --at) top[at] = top[at - 1];
    top[at] = i;
  }
  if (count == 0) top[count++] = largest;
  listed_.assign(top, top + count);
}

// Brings the listed ones forward until each is up to date or known not to beat the floor.
void LogDetGreedy::bring_forward(Layer& layer, Work& work) {
  const auto count = static_cast<index>(listed_.size());
  if (count == 0) return;
  // A block is read together, so those that missed as much stand side by side.
  const auto before = [&](index i, index j) { return layer.known[i] < layer.known[j]; };
  if (!std::is_sorted(listed_.begin(), listed_.end(), before)) {
    std::stable_sort(listed_.begin(), listed_.end(), before);
  }
  double missed = 0;
  for (const index i : listed_) missed += static_cast<double>(shown_ - layer.known[i]);
  const index blocks = (count + kBlock - 1) / kBlock;
  work.each(blocks, missed * static_cast<double>(candidates_->dims()) / kVectors,
            [&](index b, int worker, Work& own) {
              catch_up(layer, listed_.data() + b * kBlock, std::min(kBlock, count - b * kBlock),
                       products_[worker], own);
            });
}

// Shows rows, sorted by what they know, the chosen vectors that they have missed: a stride after
// the other while the rows are in cache, and fewer rows each time.
void LogDetGreedy::catch_up(Layer& layer, index* rows, index count, std::vector<double>& products,
                            Work& work) {
  for (;;) {
    const double floor = floor_.load(std::memory_order_relaxed);
    count =
        std::remove_if(rows, rows + count,
                       [&](index i) { return layer.known[i] == shown_ || !may_win(i, floor); }) -
        rows;
    if (count == 0) return;
    const index from = layer.known[rows[0]];
    const index to = std::min(shown_, from + kStride);
    index behind = 0;
    while (behind < count && layer.known[rows[behind]] < to) ++behind;
    advance(layer, rows, behind, from, to, products, work);
    for (index r = 0; r < behind; ++r) raise_floor(at_least(rows[r]));
  }
}

// The floor is the best value by now, as nearly as doubles know it.
index LogDetGreedy::settle(Work& work) {
  contenders_.clear();
  const index n = candidates_->count();
  for (index i = 0; i < n; ++i) {
    if (may_win(i, floor_)) contenders_.push_back(i);
  }
  was_wide_ = !settled();
  if (was_wide_) settle_wide(work);
  double best = 0;
  for (const index i : contenders_) best = std::max(best, settled_[i]);
  for (const index i : contenders_) {
    if (settled_[i] >= best * (1 - kLogDetTie)) return i;
  }
  throw std::range_error("the state's factor is not that of its vectors");
}

// Whether doubles tell the contenders apart, which are cut down to those that they do not rule out.
// Nothing here depends on what was worked out before.
bool LogDetGreedy::settled() {
  if (!regular_ || shown_ < chosen_) return false;
  double sure = 0;
  margins_.clear();
  for (const index i : contenders_) {
    const double residual = exact_.residual[i];
    double error = error_of(i, residual, chosen_);
    if (error > kLogDetFine * residual && residual > 0) error = close_error_of(i);
    margins_.push_back(error);
    sure = std::max(sure, residual - error);
  }
  bool fine = true;
  index left = 0;
  for (std::size_t c = 0; c < contenders_.size(); ++c) {
    const index i = contenders_[c];
    if (exact_.residual[i] + margins_[c] < sure * (1 - kLogDetTie)) continue;
    fine = fine && margins_[c] <= kLogDetFine * sure;
    settled_[i] = exact_.residual[i];
    contenders_[left++] = i;
  }
  contenders_.resize(static_cast<std::size_t>(left));
  return fine;
}

void LogDetGreedy::start_wide(Work& work) {
  const LogDetState& before = problem_->before;
  if (wide_ == nullptr) {
    candidates_->refine(work);
    const double bits =
        std::log2(std::max(longest_, 1.0)) + std::log2(static_cast<double>(capacity_)) + 2;
    wide_ = WideResiduals::make(*candidates_, problem_->gamma, problem_->scale, bits);
  }
  for (index s = wide_->chosen(); s < chosen_; ++s) {
    if (s < before.count) {
      wide_->choose(before.vectors + s * candidates_->dims(), work);
    } else {
      wide_->choose(picks_[s - before.count], work);
    }
  }
}

// Works out the contenders in more digits, those of the largest bounds first, until no bound is as
// large as the best: the contenders are those worked out, ascending.
void LogDetGreedy::settle_wide(Work& work) {
  start_wide(work);
  std::stable_sort(contenders_.begin(), contenders_.end(),
                   [&](index i, index j) { return bound_[i] > bound_[j]; });
  const auto all = static_cast<index>(contenders_.size());
  double best = 0;
  index done = 0;
  for (index batch = kLikely; done < all; batch = std::min(2 * batch, kMostAtOnce)) {
    index end = done;
    while (end < all && end < done + batch && bound_[contenders_[end]] >= best * (1 - kLogDetTie)) {
      ++end;
    }
    if (end == done) break;
    const auto operations =
        static_cast<double>(end - done) * static_cast<double>(candidates_->dims() + chosen_) * 64;
    work.each(end - done, operations / kVectors, [&](index c, int, Work& own) {
      const index i = contenders_[done + c];
      settled_[i] = wide_->residual(i, own);
    });
    for (; done < end; ++done) {
      const index i = contenders_[done];
      bound_[i] = std::min(bound_[i], settled_[i] * (1 + 4 * kRoundOff));
      best = std::max(best, settled_[i]);
    }
  }
  contenders_.resize(static_cast<std::size_t>(done));
  std::sort(contenders_.begin(), contenders_.end());
}

// Shows the chosen vectors `from` .. `to - 1` to `count` rows that know `from` or more of them.
void LogDetGreedy::advance(Layer& layer, const index* rows, index count, index from, index to,
                           std::vector<double>& products, Work& work) {
  const index d = candidates_->dims(), missed = to - from;
  work.spend(count * missed * (d + to));
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
    bound_[i] = std::min(bound_[i], residual + error_of(i, residual, to));
    return;
  }
  const double length = lengths_[i], root = std::sqrt(length - residual), error = sieve_error(i);
  const double low = std::max(root - error, 0.0), high = root + error;
  const double most = length - low * low, margin = error_of(i, most, to);
  bound_[i] = std::min(bound_[i], most + margin);
  least_[i] = length - high * high - 3 * margin;  // below what doubles make of it, too
}

// How far the sieve's u_i may be from u_i: L^{-1}, which shortens every vector (but for the error
// of L itself, see kMostError), times the errors of its products, at most rough_error |v_i| |w_s|
// each but for what is flushed to zero.
double LogDetGreedy::sieve_error(index i) const {
  const index known = sieve_.known[i];
  return kSieveError * (sieve_errors_[known] * std::sqrt(lengths_[i]) +
                        ratio_ * kRoughLeast * static_cast<double>(candidates_->dims() * known));
}

// One more chosen vector.
void LogDetGreedy::count_in(double length) {
  const auto count = static_cast<index>(sizes_.size()) + 1;
  chosen_lengths_ += length;
  longest_ = std::max(longest_, length);
  sizes_.push_back(std::sqrt(1 + length));
  errors_.push_back(kRoundOff * (static_cast<double>(8 + count) + candidates_->roundings()));
  kappas_.push_back(kappas_.back() + 1 + length);
  sieve_errors_.push_back(rough_error(candidates_->dims()) * std::sqrt(chosen_lengths_));
  if (regular_ && shown_ == count - 1 && errors_.back() * kappas_.back() <= kMostError) {
    shown_ = count;
  }
}

void LogDetGreedy::choose(index i, Work& work) {
  const index d = candidates_->dims();
  if (was_wide_) {
    wide_->choose(i, work);
    std::vector<double>& row = products_[0];
    row.resize(static_cast<std::size_t>(capacity_));
    wide_->factor_row(chosen_, row.data());
    for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = row[q];
  } else {
    const double* u = exact_.coefficients.get() + i * capacity_;
    for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = u[q];
  }
  pivots_[chosen_] = std::sqrt(1 + settled_[i]);
  // The sieve's interval is as wide as the value once this holds, and from then on: it tells
  // nothing.
  const double length = lengths_[i], root = std::sqrt(std::max(length - settled_[i], 0.0));
  if (sieved_ && 2 * root * kSieveError * sieve_errors_.back() * std::sqrt(length) > settled_[i]) {
    sieved_ = false;
  }
  if (narrow_) {
    candidates_->copy(i, narrow_column(chosen_));
  } else {
    candidates_->copy(i, columns_.data() + (chosen_ - problem_->before.count) * d);
  }
  count_in(lengths_[i]);
  bound_[i] = kTaken;
  ++chosen_;
}

}  // namespace pyfast
