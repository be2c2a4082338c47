#include "core/logdet.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace pyfast {

namespace {

constexpr double kTaken = -1;
constexpr index kBlock = 16;  // rows brought forward together, by at most
constexpr index kStride = 6;  // chosen vectors: what the cache holds beside them
constexpr index kLikely = 4;  // rows brought up to date before the best value is known

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
    const double gain = std::log1p(residual_[i]);
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

void LogDetGreedy::start(Token& token) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  ratio_ = problem_->scale / problem_->gamma;
  chosen_ = before.count;
  capacity_ = before.count + problem_->k;
  known_.assign(static_cast<std::size_t>(n), 0);
  residual_.resize(static_cast<std::size_t>(n));
  coefficients_.resize(static_cast<std::size_t>(n * capacity_));
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
      residual_[i] = ratio_ * candidates_->squared_norm(i);
    }
  });
  for (index i = 0; i < n; ++i) {
    if (!std::isfinite(residual_[i])) {
      throw std::range_error("the squared length of candidate " + std::to_string(i) +
                             " times scale / gamma overflows; scale the vectors down");
    }
  }
}

index LogDetGreedy::next(Token& token) {
  find_likely();
  refresh_those_above(kTaken, token);
  const double best = best_known();
  const index n = candidates_->count();
  stale_.clear();
  for (index i = 0; i < n; ++i) {
    if (residual_[i] > best && known_[i] < chosen_) stale_.push_back(i);
  }
  refresh_those_above(best, token);
  return lowest_tied(best_known(), token);
}

double LogDetGreedy::best_known() const {
  double best = 0;
  const index n = candidates_->count();
  for (index i = 0; i < n; ++i) {
    if (known_[i] == chosen_ && residual_[i] > best) best = residual_[i];
  }
  return best;
}

// The largest bounds of all that are cheap to bring up to date (the largest, if there is none):
// once those are, the best value known is nearly the best.
void LogDetGreedy::find_likely() {
  const index n = candidates_->count();
  index top[kLikely];
  index count = 0, largest = -1;
  for (index i = 0; i < n; ++i) {
    if (residual_[i] == kTaken) continue;
    if (largest < 0 || residual_[i] > residual_[largest]) largest = i;
    if (known_[i] < chosen_ - kStride) continue;
    if (count == kLikely && residual_[i] <= residual_[top[count - 1]]) continue;
    index at = count < kLikely ? count++ : count - 1;
    for (; at > 0 && residual_[top[at - 1]] < residual_[i]; --at) top[at] = top[at - 1];
    top[at] = i;
  }
  if (count == 0) top[count++] = largest;
  stale_.clear();
  for (index at = 0; at < count; ++at) {
    if (known_[top[at]] < chosen_) stale_.push_back(top[at]);
  }
}

// Brings those in stale_ forward, a stride of vectors at a time and the farthest behind first,
// until each is up to date or known not to beat `best` or another of them.
void LogDetGreedy::refresh_those_above(double best, Token& token) {
  for (;;) {
    index from = chosen_;
    std::size_t left = 0;
    for (const index i : stale_) {
      if (known_[i] == chosen_) {
        best = std::max(best, residual_[i]);
      } else {
        stale_[left++] = i;
      }
    }
    stale_.resize(left);
    left = 0;
    for (const index i : stale_) {
      if (residual_[i] <= best) continue;
      stale_[left++] = i;
      from = std::min(from, known_[i]);
    }
    stale_.resize(left);
    if (left == 0) return;
    const auto behind =
        std::partition(stale_.begin(), stale_.end(), [&](index i) { return known_[i] == from; });
    const index count = behind - stale_.begin(),
                to = std::min(chosen_, (from / kStride + 1) * kStride);
    in_parallel((count + kBlock - 1) / kBlock, token, [&](index b, int worker, Token& t) {
      advance(stale_.data() + b * kBlock, std::min(kBlock, count - b * kBlock), from, to,
              products_[worker], t);
    });
  }
}

index LogDetGreedy::lowest_tied(double best, Token& token) {
  const double enough = best * (1 - kLogDetTie);
  index i = 0;
  for (;; ++i) {
    if (residual_[i] < enough) continue;  // chosen ones too: enough >= 0 > kTaken
    if (known_[i] < chosen_) advance(&i, 1, known_[i], chosen_, products_[0], token);
    if (residual_[i] >= enough) return i;
  }
}

// Shows the chosen vectors `from` .. `to - 1` to `count` rows that have seen those before.
void LogDetGreedy::advance(const index* rows, index count, index from, index to,
                           std::vector<double>& products, Token& token) {
  const index d = candidates_->dims(), missed = to - from;
  token.spend(count * missed * (d + to));
  products.resize(static_cast<std::size_t>(count * missed));
  const LogDetState& before = problem_->before;
  const index old = std::clamp<index>(before.count - from, 0, missed);
  if (old > 0) {
    candidates_->dots(rows, count, before.vectors + from * d, old, products.data(), missed);
  }
  if (missed > old) {
    candidates_->dots(rows, count, columns_.data() + (from + old - before.count) * d, missed - old,
                      products.data() + old, missed);
  }
  for (index r = 0; r < count; ++r) absorb(rows[r], to, products.data() + r * missed);
}

// Forward substitution with L: products[s] = w_{known + s}^T v_i become entries of u_i.
void LogDetGreedy::absorb(index i, index to, double* products) {
  const index from = known_[i];
  double* u = coefficients_.data() + i * capacity_;
  for (index s = 0; s < to - from; ++s) products[s] *= ratio_;
  for (index q = 0; q < to; ++q) {
    if (q >= from) {
      u[q] = products[q - from] / pivots_[q];
      residual_[i] = std::max(residual_[i] - u[q] * u[q], 0.0);
    }
    const index first = std::max(q + 1, from);
    const double* row = factor_.data() + q * capacity_ + first;
    double* left = products + first - from;
    for (index s = 0; s < to - first; ++s) left[s] -= u[q] * row[s];
  }
  known_[i] = to;
}

void LogDetGreedy::choose(index i) {
  const double* u = coefficients_.data() + i * capacity_;
  for (index q = 0; q < chosen_; ++q) factor_[q * capacity_ + chosen_] = u[q];
  pivots_[chosen_] = std::sqrt(1 + residual_[i]);
  candidates_->copy(i, columns_.data() + (chosen_ - problem_->before.count) * candidates_->dims());
  residual_[i] = kTaken;
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
