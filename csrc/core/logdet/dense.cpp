// The greedy selection of many vectors, beside the number of their dimensions: bounds of many
// candidates by what each chosen vector takes off, or by the float inverse of the information
// matrix, and what they leave open by the factor of whichever matrix is smaller.
//
// With A the matrix before w is chosen, w takes (v^T y)^2 off each r_i, y = A^{-1} w / sqrt(1 + r)
// (Sherman and Morrison): d multiplications for each vector that a candidate has missed, beside
// d^2 / 2 for a bound from nothing. What v^T y may be off by, over |v|, stands in fall_errors_:
// - its own roundings, times |y|;
// - by A's factor, those of y: information.hpp's error() |y|.
// - By L, of logdet.hpp, y is a row of L^{-1} ratio W; s rows of it, made of those before them, are
//   those of ratio W + F, |F| <= (s + 4) 2^-53 sqrt(kappa s ratio), and L^{-1} shortens. That L is
//   the factor of a matrix off by e kappa at most changes sums of squares of products by as much.
#include <algorithm>
#include <cmath>

#include "core/logdet/logdet.hpp"
#include "core/run/memory.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr index kLikely = 4;  // candidates looked at before all that may win,
constexpr int kRounds = 2;    // so many times
constexpr double kAnew = 30;  // residuals so many times smaller are looked at anew
constexpr index kBlock = InformationMatrix::kTogether;
constexpr index kWidth = simd::kPanelWidth;
constexpr double kVectors = 16;  // multiplications that a vector unit does in a nanosecond
constexpr double kRoundOff = 0x1.0p-53;

// Roundings of a product of floats on its way to a sum of panel_dots (simd.hpp), and of both its
// factors.
double panel_error(index d) { return (264 + static_cast<double>(d) / 256) * 0x1.0p-24; }

}  // namespace

void LogDetGreedy::start_dense(Work& work) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  information_.start(d, 1 / ratio_, work);
  floats_fit_ = fits_floats();
  as_of_.assign(static_cast<std::size_t>(n), 0);
  falls_from_ = 0;
  resize(falls_, std::min(capacity_, d) * d, work);
  fall_panels_.resize((capacity_ + kWidth - 1) / kWidth, d * kWidth, work);
  fall_errors_.resize(static_cast<std::size_t>(capacity_));
  rooms_.resize(static_cast<std::size_t>(work.threads()));
  for (index s = 0; s < before.count; ++s) {
    work.spend(8 * d * d);
    if (s < d) {
      add_fall(s, before.vectors + s * d);
    } else {
      falls_from_ = s + 1;
    }
    information_.add(before.vectors + s * d, sizes_[s] * sizes_[s] - 1);
  }
  close_.resize(static_cast<std::size_t>(n));
}

// Makes y of the s-th chosen vector, before it is counted in.
void LogDetGreedy::add_fall(index s, const double* w) {
  const index d = candidates_->dims();
  const bool by_factor = s < d;
  const double residual = pivots_[s] * pivots_[s] - 1;
  if (s == 0) fresh_ = residual;
  if (kAnew * residual < fresh_) {  // small beside the roundings until here: bounds from nothing
    fresh_ = residual;
    falls_from_ = s + 1;
  }
  if (!floats_fit_ || (by_factor ? shown_ <= s : !std::isfinite(information_.error()))) {
    falls_from_ = s + 1;
    return;
  }
  Room& room = rooms_[0];
  room.vector.resize(static_cast<std::size_t>(d));
  double* y = by_factor ? falls_.data() + s * d : room.vector.data();
  double off = 0;
  if (by_factor) {
    for (index t = 0; t < d; ++t) y[t] = ratio_ * w[t];
    for (index q = 0; q < s; ++q) {
      const double* other = falls_.data() + q * d;
      const double entry = factor_[q * capacity_ + s];
      for (index t = 0; t < d; ++t) y[t] -= entry * other[t];
    }
    const auto rows = static_cast<double>(s + 8);
    off = 1.2 * rows * kRoundOff * std::sqrt(rows * kappas_[s + 1]);
  } else {
    std::copy_n(w, d, y);
    information_.factorise();
    information_.solve(y, room.spread);
    off = 1.1 * information_.error() + 1e-9;
  }
  for (index t = 0; t < d; ++t) y[t] /= pivots_[s];
  const double root = std::sqrt(ratio_);  // |y| is at most this
  float* panel = fall_panels_.row(s / kWidth) + s % kWidth;
  for (index t = 0; t < d; ++t) panel[t * kWidth] = static_cast<float>(y[t] / root);
  const double length = std::sqrt(simd::dot(y, y, d)) / root;
  fall_errors_[s] = (by_factor ? off : off * length) + 1.1 * panel_error(d) * length;
}

// Lists the largest bound of each of the `most` blocks that have the largest.
void LogDetGreedy::list_dense(index most, Work& work) {
  index top[kLikely];
  index count = 0;
  work.spend(static_cast<index>(tops_.size()));
  for (index b = 0; b < static_cast<index>(tops_.size()); ++b) {
    if (count == most && tops_[b] <= tops_[top[count - 1]]) continue;
    index at = count < most ? count++ : count - 1;
    for (; at > 0 && tops_[top[at - 1]] < tops_[b]; --at) top[at] = top[at - 1];
    top[at] = b;
  }
  listed_.clear();
  for (index t = 0; t < count; ++t) {
    const auto first = bound_.begin() + top[t] * kTop;
    const auto end = bound_.begin() + std::min<index>((top[t] + 1) * kTop, candidates_->count());
    const auto largest = std::max_element(first, end);
    tops_[top[t]] = *largest;
    if (*largest != kTaken) listed_.push_back(largest - bound_.begin());
  }
}

// Lists those that may win and are not worked out.
void LogDetGreedy::list_open() {
  listed_.clear();
  const index known = by_information() ? chosen_ : shown_;
  each_that_may_win(best_, [&](index i) {
    if (exact_.known[i] != known) listed_.push_back(i);
  });
}

// Brings best_ up to the best value: by the largest bounds of a few, and then by all that may win.
void LogDetGreedy::next_dense(Work& work) {
  index best = -1;
  for (int round = 0; round < kRounds; ++round) {
    list_dense(kLikely, work);
    const std::vector<index> likely = listed_;
    take_falls(work);
    for (const index i : likely) best = best < 0 || bound_[i] > bound_[best] ? i : best;
  }
  listed_.clear();
  if (best >= 0) listed_.push_back(best);  // none if the caller's lengths are not those of vectors
  evaluate_dense(work);
  list_open();
  if (floats_fit_ && std::isfinite(information_.error())) ask_inverse(work);
  take_falls(work);
  list_open();
  for (int round = 0; round < kRounds && listed_.size() > 1; ++round) {
    const auto less = [&](index i, index j) { return bound_[i] < bound_[j]; };
    listed_.assign(1, *std::max_element(listed_.begin(), listed_.end(), less));
    evaluate_dense(work);
    list_open();
  }
  evaluate_dense(work);
}

// An inverse from before the latest picks gives bounds as well; a new one is made where those that
// ask have missed more since than it costs.
void LogDetGreedy::ask_inverse(Work& work) {
  const index d = candidates_->dims();
  asking_.clear();
  index missed = 0;
  for (const index i : listed_) {
    if (as_of_[i] >= falls_from_ && 2 * (chosen_ - as_of_[i]) <= d) continue;
    asking_.push_back(i);
    missed += chosen_ - std::max(as_of_[i], information_.inverted());
  }
  if (asking_.empty()) return;
  if (missed > 2 * d * d || information_.inverted() < falls_from_) information_.invert();
  const auto asked = [&](index i) { return as_of_[i] >= information_.inverted(); };
  asking_.erase(std::remove_if(asking_.begin(), asking_.end(), asked), asking_.end());
  const auto count = static_cast<index>(asking_.size());
  const auto operations = static_cast<double>(count) * static_cast<double>(d * d) / 2 / kVectors;
  work.each((count + kBlock - 1) / kBlock, operations, [&](index b, int worker, Work& own) {
    Room& room = rooms_[static_cast<std::size_t>(worker)];
    const index* block = asking_.data() + b * kBlock;
    const index rows = std::min(kBlock, count - b * kBlock);
    own.spend(rows * d * d / 8);
    take_rows(block, rows, room, own);
    room.bounds.resize(kBlock);
    information_.bounds(room.rows, rows, room.lengths.data(), room.bounds.data());
    for (index r = 0; r < rows; ++r) {
      lower(block[r], room.bounds[r], information_.inverted());
    }
  });
}

// Their numbers as floats, and their lengths |v|.
void LogDetGreedy::take_rows(const index* block, index rows, Room& room, Work& work) {
  information_.prepare(room.rows, work);
  room.lengths.resize(kBlock);
  for (index r = 0; r < rows; ++r) {
    candidates_->copy(block[r], room.rows.rows.row(r));
    room.lengths[r] = std::sqrt(lengths_[block[r]] / ratio_);
  }
}

// Takes off the bounds of those listed what they have missed.
void LogDetGreedy::take_falls(Work& work) {
  const auto known = [&](index i) { return as_of_[i] >= falls_from_ && as_of_[i] < chosen_; };
  listed_.erase(std::partition(listed_.begin(), listed_.end(), known), listed_.end());
  std::sort(listed_.begin(), listed_.end(),
            [&](index i, index j) { return as_of_[i] < as_of_[j]; });
  const index d = candidates_->dims(), width = (d + kWidth - 1) / kWidth * kWidth;
  const auto count = static_cast<index>(listed_.size());
  double missed = 0;
  for (const index i : listed_) missed += static_cast<double>(chosen_ - as_of_[i] + kWidth);
  const double operations = missed * static_cast<double>(d) / kVectors;
  work.each((count + kBlock - 1) / kBlock, operations, [&](index b, int worker, Work& own) {
    const index* block = listed_.data() + b * kBlock;
    const index rows = std::min(kBlock, count - b * kBlock);
    Room& room = rooms_[static_cast<std::size_t>(worker)];
    take_rows(block, rows, room, own);
    own.spend(rows * (chosen_ - as_of_[block[0]] + kWidth) * d / 8);
    const index end = (chosen_ + kWidth - 1) / kWidth;
    for (index p = as_of_[block[0]] / kWidth; p < end; p += width / kWidth) {
      const index panels = std::min(end - p, width / kWidth);
      float* products = room.rows.products.row(0);
      simd::kernels().panel_dots(room.rows.rows.row(0), rows, width, fall_panels_.row(p), panels,
                                 d * kWidth, d, products, width);
      for (index r = 0; r < rows; ++r) {
        take_fall(block[r], products + r * width, p * kWidth, panels * kWidth, room.lengths[r]);
      }
    }
  });
}

// By products with `count` chosen vectors, `first` the first of them; some it may have seen, and
// some may be still to come.
void LogDetGreedy::take_fall(index i, const float* products, index first, index count,
                             double length) {
  const index d = candidates_->dims();
  const index from = std::max(as_of_[i], first), to = std::min(chosen_, first + count);
  if (from >= to) return;
  const double least = kFloatLeast * static_cast<double>(d) * (1 + length);
  double fall = 0;
  for (index s = from; s < to; ++s) {
    const double root =
        std::abs(static_cast<double>(products[s - first])) - length * fall_errors_[s] - least;
    fall += root > 0 ? root * root : 0.0;
  }
  double slack = 4 * kRoundOff * bound_[i];
  if (from < d) {
    const index known = std::min(to, d);
    slack += 2.2 * errors_[known] * kappas_[known] * lengths_[i];
  }
  lower(i, bound_[i] + slack - (1 - 1e-12) * ratio_ * fall, to);
}

// Residuals of those listed in double, by the smaller matrix.
void LogDetGreedy::evaluate_dense(Work& work) {
  if (!by_information()) return bring_forward(exact_, work);
  information_.factorise();
  const index d = candidates_->dims();
  const auto count = static_cast<index>(listed_.size());
  const auto operations = static_cast<double>(count) * static_cast<double>(d * d);
  work.each(count, operations / 4, [&](index c, int worker, Work& own) {
    const index i = listed_[c];
    if (!may_win(i, best_.load(std::memory_order_relaxed))) return;
    Room& room = rooms_[static_cast<std::size_t>(worker)];
    room.vector.resize(static_cast<std::size_t>(d));
    own.spend(d * d);
    candidates_->copy(i, room.vector.data());
    const double residual = information_.residual(room.vector.data());
    exact_.residual[i] = residual;
    exact_.known[i] = chosen_;
    close_[i] = information_.close_error(room.vector.data(), room.spread);
    lower(i, residual + close_[i], chosen_);
    raise_best(residual - close_[i]);
  });
}

// Works out the contenders to all digits of a double; false if that cannot be told.
bool LogDetGreedy::refined(Work& work) {
  if (!dense_ || !floats_fit_ || !std::isfinite(information_.error())) return false;
  information_.factorise();
  const index d = candidates_->dims();
  const auto count = static_cast<index>(contenders_.size());
  margins_.resize(contenders_.size());
  work.each(count, static_cast<double>(12 * count * d * d) / kVectors,
            [&](index c, int worker, Work& own) {
              const index i = contenders_[c];
              Room& room = rooms_[static_cast<std::size_t>(worker)];
              room.vector.resize(static_cast<std::size_t>(d));
              own.spend(8 * d * d);
              candidates_->copy(i, room.vector.data());
              const auto found = information_.refined(room.vector.data(), room.spread);
              values_[i] = std::max(0.0, found.residual);
              margins_[c] = found.error;
              lower(i, values_[i] + found.error, chosen_);
            });
  double sure = 0;
  for (index c = 0; c < count; ++c) sure = std::max(sure, values_[contenders_[c]] - margins_[c]);
  return std::all_of(margins_.begin(), margins_.end(),
                     [&](double error) { return error <= kLogDetFine * sure; });
}

}  // namespace pyfast
