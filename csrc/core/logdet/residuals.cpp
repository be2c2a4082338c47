// Bounds and residuals of candidates by the k x k factor: a row catches up with the vectors that it
// has missed, in float first if that tells something, and in double where it may win.
#include <algorithm>
#include <cmath>

#include "core/logdet/logdet.hpp"

namespace pyfast {

namespace {

constexpr index kBlock = kFloatRows;      // rows brought forward together, by at most
constexpr index kStride = kFloatColumns;  // chosen vectors shown to them at once, by at most
constexpr index kLikely = 4;              // rows brought up to date before best_ is near the best

// Bounds in float are worth a second pass from this many numbers on, and safe between these
// lengths: no float product overflows, and what is flushed to zero is nothing beside the longest.
constexpr index kFloatsFrom = 1 << 13;
constexpr double kFloatShortest = 1e-20, kFloatLongest = 1e30;
constexpr double kVectors = 16;  // multiplications that a vector unit does in a nanosecond
constexpr double kFactorError =
    1.04;  // what an error of L of kMostError makes of that of a float bound

}  // namespace

void LogDetGreedy::Layer::start(index n, index capacity, const std::vector<double>& lengths) {
  known.assign(static_cast<std::size_t>(n), 0);
  residual = lengths;
  stride = capacity;
  const auto needed = static_cast<std::size_t>(n * capacity);
  if (needed > room) {
    coefficients.reset(new double[needed]);
    room = needed;
  }
}

// Whether floats hold products of all vectors.
bool LogDetGreedy::fits_floats() const {
  const double longest = *std::max_element(lengths_.begin(), lengths_.end());
  return regular_ && longest / ratio_ > kFloatShortest && longest_ / ratio_ < kFloatLongest;
}

void LogDetGreedy::start_float_bounds() {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  float_bounded_ = narrow_ && !dense_ && n * d >= kFloatsFrom && fits_floats();
  if (!float_bounded_) return;
  float_bounds_.start(n, capacity_, lengths_);
  least_.resize(static_cast<std::size_t>(n));
  for (index s = 0; s < before.count; ++s) {
    std::copy_n(before.vectors + s * d, d, narrow_column(s));
  }
}

// No more, once its interval is as wide as the value, which holds from then on.
bool LogDetGreedy::floats_tell(double length, double residual) const {
  const double root = std::sqrt(std::max(length - residual, 0.0));
  return 2 * root * kFactorError * float_errors_.back() * std::sqrt(length) <= residual;
}

// How far the residual of a candidate that knows so many vectors may be off: logdet.hpp's bound.
double LogDetGreedy::error_of(index i, double residual, index known) const {
  return 4 * errors_[known] * (lengths_[i] + kappas_[known] * residual);
}

// The closer bound, from the multipliers y, of one that is up to date.
double LogDetGreedy::close_error_of(index i) {
  const double* u = exact_.of(i);
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

// What r_i is at least, if that is known.
double LogDetGreedy::at_least(index i) const {
  if (shown_ < chosen_) return kTaken;
  if (exact_.known[i] == chosen_) {
    return exact_.residual[i] - error_of(i, exact_.residual[i], chosen_);
  }
  return float_bounded_ && float_bounds_.known[i] == chosen_ ? least_[i] : kTaken;
}

// Lists those that may win and that the layer is not up to date with.
void LogDetGreedy::list(const Layer& layer) {
  listed_.clear();
  each_that_may_win(best_, [&](index i) {
    if (layer.known[i] < shown_ && exact_.known[i] < shown_) listed_.push_back(i);
  });
}

// Lists the largest bounds of all that are cheap to bring up to date (the largest, if there is
// none): once those are, best_ is nearly the best.
void LogDetGreedy::list_likely(const Layer& layer) {
  const index n = candidates_->count(), least_known = shown_ - kStride;
  const double* bounds = bound_.data();
  const index* known = layer.known.data();
  index top[kLikely];
  index count = 0, largest = -1;
  double largest_bound = 0, last = 0;
  for (index i = 0; i < n; ++i) {
    const double bound = bounds[i];
    if (bound == kTaken) continue;
    if (largest < 0 || bound > largest_bound) largest_bound = bound, largest = i;
    if ((count == kLikely && bound <= last) || known[i] < least_known) continue;
    index at = count < kLikely ? count++ : count - 1;
    for (; at > 0 && bounds[top[at - 1]] < bound; --at) top[at] = top[at - 1];
    top[at] = i;
    last = bounds[top[count - 1]];
  }
  if (count == 0) top[count++] = largest;
  listed_.assign(top, top + count);
}

// Brings the listed ones forward until each is up to date or known not to be the best.
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
    const double best = best_.load(std::memory_order_relaxed);
    count = std::remove_if(rows, rows + count,
                           [&](index i) { return layer.known[i] == shown_ || !may_win(i, best); }) -
            rows;
    if (count == 0) return;
    const index from = layer.known[rows[0]];
    const index to = std::min(shown_, from + kStride);
    index behind = 0;
    while (behind < count && layer.known[rows[behind]] < to) ++behind;
    advance(layer, rows, behind, from, to, products, work);
    for (index r = 0; r < behind; ++r) raise_best(at_least(rows[r]));
  }
}

// Shows the chosen vectors `from` .. `to - 1` to `count` rows that know `from` or more of them.
void LogDetGreedy::advance(Layer& layer, const index* rows, index count, index from, index to,
                           std::vector<double>& products, Work& work) {
  const index d = candidates_->dims(), missed = to - from;
  work.spend(count * missed * (d + to));
  products.resize(static_cast<std::size_t>(count * missed));
  if (&layer == &float_bounds_) {
    float floats[kBlock * kStride];
    candidates_->float_dots(rows, count, narrow_column(from), missed, narrow_stride_, floats,
                            missed);
    std::copy_n(floats, count * missed, products.data());
  } else {
    dots(rows, count, from, to, products.data());
  }
  for (index r = 0; r < count; ++r) absorb(layer, rows[r], from, to, products.data() + r * missed);
}

// products[r * (to - from) + s] = w_{from + s}^T v_{rows[r]}
void LogDetGreedy::dots(const index* rows, index count, index from, index to, double* products) {
  const LogDetState& before = problem_->before;
  const index d = candidates_->dims(), missed = to - from;
  const index old = std::clamp<index>(before.count - from, 0, missed);
  if (old > 0) {
    candidates_->dots(rows, count, before.vectors + from * d, old, products, missed);
  }
  if (missed > old && narrow_) {
    candidates_->dots(rows, count, narrow_column(from + old), missed - old, narrow_stride_,
                      products + old, missed);
  } else if (missed > old) {
    candidates_->dots(rows, count, columns_.data() + (from + old - before.count) * d, missed - old,
                      products + old, missed);
  }
}

// Forward substitution with L: products[s] = w_{known + s}^T v become entries of u, whose first
// `known` are there already; each takes its square off the residual.
void LogDetGreedy::substitute(double* __restrict products, index known, index to,
                              double* __restrict u, double& residual) const {
  double rest = residual;
  for (index s = 0; s < to - known; ++s) products[s] *= ratio_;
  for (index q = 0; q < to; ++q) {
    if (q >= known) {
      u[q] = products[q - known] / pivots_[q];
      const double loss = u[q] * u[q];  // not a number where a state's numbers overflow
      rest = rest > loss ? rest - loss : 0.0;
    }
    const index first = std::max(q + 1, known);
    const double* row = factor_.data() + q * capacity_ + first;
    double* left = products + first - known;
    const double of_q = u[q];
    for (index s = 0; s < to - first; ++s) left[s] -= of_q * row[s];
  }
  residual = rest;
}

// The row that v_i adds to L.
void LogDetGreedy::factor_row(index i, std::vector<double>& row, Work& work) {
  work.spend(chosen_ * (candidates_->dims() + chosen_ / 2));
  multipliers_.resize(static_cast<std::size_t>(capacity_));
  row.resize(static_cast<std::size_t>(capacity_));
  dots(&i, 1, 0, chosen_, multipliers_.data());
  double residual = lengths_[i];
  substitute(multipliers_.data(), 0, chosen_, row.data(), residual);
}

void LogDetGreedy::absorb(Layer& layer, index i, index from, index to, double* products) {
  const index known = layer.known[i];
  double residual = layer.residual[i];
  substitute(products + known - from, known, to, layer.of(i), residual);
  layer.residual[i] = residual;
  layer.known[i] = to;
  if (&layer == &exact_) {
    lower(i, residual + error_of(i, residual, to), to);
    return;
  }
  const double length = lengths_[i], root = std::sqrt(length - residual), error = float_error(i);
  const double low = std::max(root - error, 0.0), high = root + error;
  const double most = length - low * low, margin = error_of(i, most, to);
  lower(i, most + margin, to);
  least_[i] = length - high * high - 3 * margin;  // below what doubles make of it, too
}

// How far u_i of floats may be from u_i: L^{-1}, which shortens every vector (but for the error
// of L itself, see kMostError), times the errors of its products, at most float_dot_error |v_i|
// |w_s| each but for what is flushed to zero.
double LogDetGreedy::float_error(index i) const {
  const index known = float_bounds_.known[i];
  return kFactorError * (float_errors_[known] * std::sqrt(lengths_[i]) +
                         ratio_ * kFloatLeast * static_cast<double>(candidates_->dims() * known));
}

}  // namespace pyfast
