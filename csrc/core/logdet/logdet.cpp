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

constexpr index kBlock = 16;         // rows measured together
constexpr index kLikely = 4;         // rows worked out in more digits at first
constexpr index kMostAtOnce = 1024;  // and before the next look
// Squared lengths between these, times ratio or not, leave all products well inside double's range.
constexpr double kShortest = 1e-300, kLongest = 1e304;
constexpr double kVectors = 16;  // multiplications that a vector unit does in a nanosecond
constexpr double kRoundOff = 0x1.0p-53;
constexpr double kMostError = 1.0 / 16;  // of e kappa: see logdet.hpp

}  // namespace

double LogDetGreedy::solve(const LogDetProblem& problem, const LogDetAnswer& answer, Work& work) {
  problem_ = &problem;
  candidates_ = problem.candidates;
  wants_factor_ = answer.factor != nullptr;
  start(work);
  const auto d = static_cast<double>(candidates_->dims());
  double logdet = problem.before.count > 0 ? problem.before.logdet : d * std::log(problem.gamma);
  double before = std::numeric_limits<double>::infinity();
  for (index step = 0; step < problem.k; ++step) {
    const index i = next(work);
    double gain = std::log1p(values_[i]);
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

void LogDetGreedy::start(Work& work) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  ratio_ = problem_->scale / problem_->gamma;
  chosen_ = before.count;
  capacity_ = before.count + problem_->k;
  lengths_.resize(static_cast<std::size_t>(n));
  values_.resize(static_cast<std::size_t>(n));
  resize(factor_, capacity_ * capacity_, work);
  pivots_.resize(static_cast<std::size_t>(capacity_));
  multipliers_.resize(static_cast<std::size_t>(capacity_));
  narrow_ = candidates_->narrow();
  // A quarter of a page past whole pages, so that columns do not compete for the same cache lines.
  narrow_stride_ = (d + 1023) / 1024 * 1024 + 256;
  if (narrow_) {
    narrow_columns_.resize(capacity_, narrow_stride_, work);
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
  tops_.assign(static_cast<std::size_t>((n + kTop - 1) / kTop),
               std::numeric_limits<double>::infinity());
  longest_ = std::max(longest_, *std::max_element(lengths_.begin(), lengths_.end()));
  // It pays for fewer picks too where there are many rows, that are short beside the picks.
  const bool pays = capacity_ > d || (n >= 8 * d && 3 * capacity_ >= d);
  dense_ = regular_ && pays && d <= InformationMatrix::kWidest && candidates_->whole();
  exact_.start(n, std::min(capacity_, dense_ ? d : capacity_), lengths_);
  start_float_bounds();
  if (dense_) start_dense(work);
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
  float_errors_.assign(1, 0.0);
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

index LogDetGreedy::next(Work& work) {
  best_ = 0;
  const double spare = shown_ == chosen_ ? 11 * errors_[shown_] : 0;  // 2.75 error_of()
  spare_of_length_ = by_information() ? 0 : spare;
  spare_of_bound_ = by_information() ? 3 * information_.error() : spare * kappas_[shown_];
  const bool told = by_information() ? std::isfinite(spare_of_bound_) : shown_ == chosen_;
  if (dense_ && told && chosen_ > 0) {
    next_dense(work);
  } else if (dense_) {
    spare_of_bound_ = 0;  // all are up to date, or doubles tell nothing
  } else if (chosen_ > 0) {
    Layer& first = float_bounded_ ? float_bounds_ : exact_;
    list_likely(first);
    bring_forward(first, work);
    list(first);
    bring_forward(first, work);
    if (float_bounded_) {
      list(exact_);
      bring_forward(exact_, work);
    }
  }
  return decide(work);
}

// Workers see it when they see it: it saves work and changes nothing else.
void LogDetGreedy::raise_best(double value) {
  double best = best_.load(std::memory_order_relaxed);
  while (best < value && !best_.compare_exchange_weak(best, value, std::memory_order_relaxed)) {
  }
}

// best_ is the best value by now, as nearly as doubles know it.
index LogDetGreedy::decide(Work& work) {
  contenders_.clear();
  each_that_may_win(best_, [&](index i) { contenders_.push_back(i); });
  was_wide_ = !doubles_decide(work);
  if (was_wide_) decide_wide(work);
  double best = 0;
  for (const index i : contenders_) best = std::max(best, values_[i]);
  for (const index i : contenders_) {
    if (values_[i] >= best * (1 - kLogDetTie)) return i;
  }
  throw std::range_error("the state's factor is not that of its vectors");
}

// Whether doubles tell the contenders apart, which are cut down to those that they do not rule out.
// Nothing here depends on what was worked out before.
bool LogDetGreedy::doubles_decide(Work& work) {
  if (!regular_ || (by_information() ? !std::isfinite(information_.error()) : shown_ < chosen_)) {
    return false;
  }
  double sure = 0;
  margins_.clear();
  for (const index i : contenders_) {
    const double residual = exact_.residual[i];
    double error = by_information() ? close_[i] : error_of(i, residual, chosen_);
    if (error > kLogDetFine * residual && residual > 0 && !by_information()) {
      error = close_error_of(i);
    }
    margins_.push_back(error);
    sure = std::max(sure, residual - error);
  }
  bool fine = true;
  index left = 0;
  for (std::size_t c = 0; c < contenders_.size(); ++c) {
    const index i = contenders_[c];
    if (exact_.residual[i] + margins_[c] < sure * (1 - kLogDetTie)) continue;
    fine = fine && margins_[c] <= kLogDetFine * sure;
    values_[i] = exact_.residual[i];
    contenders_[left++] = i;
  }
  contenders_.resize(static_cast<std::size_t>(left));
  return fine || refined(work);
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
void LogDetGreedy::decide_wide(Work& work) {
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
      values_[i] = wide_->residual(i, own);
    });
    for (; done < end; ++done) {
      const index i = contenders_[done];
      lower(i, values_[i] * (1 + 4 * kRoundOff), chosen_);
      best = std::max(best, values_[i]);
    }
  }
  contenders_.resize(static_cast<std::size_t>(done));
  std::sort(contenders_.begin(), contenders_.end());
}

// One more chosen vector.
void LogDetGreedy::count_in(double length) {
  const auto count = static_cast<index>(sizes_.size()) + 1;
  chosen_lengths_ += length;
  longest_ = std::max(longest_, length);
  sizes_.push_back(std::sqrt(1 + length));
  errors_.push_back(kRoundOff * (static_cast<double>(8 + count) + candidates_->roundings()));
  kappas_.push_back(kappas_.back() + 1 + length);
  float_errors_.push_back(float_dot_error(candidates_->dims()) * std::sqrt(chosen_lengths_));
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
  } else if (!by_information()) {
    const double* u = exact_.of(i);
    for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = u[q];
  } else if (wants_factor_) {
    std::vector<double>& row = products_[0];
    factor_row(i, row, work);
    for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = row[q];
  }
  pivots_[chosen_] = std::sqrt(1 + values_[i]);
  if (float_bounded_ && !floats_tell(lengths_[i], values_[i])) float_bounded_ = false;
  if (narrow_) {
    candidates_->copy(i, narrow_column(chosen_));
  } else {
    candidates_->copy(i, columns_.data() + (chosen_ - problem_->before.count) * d);
  }
  count_in(lengths_[i]);
  if (dense_) {
    multipliers_.resize(static_cast<std::size_t>(std::max(capacity_, d)));
    candidates_->copy(i, multipliers_.data());
    add_fall(chosen_, multipliers_.data());
    information_.add(multipliers_.data(), lengths_[i]);
  }
  bound_[i] = kTaken;
  ++chosen_;
}

}  // namespace pyfast
