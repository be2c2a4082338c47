// The greedy selection of more than d vectors: bounds of many candidates by the float inverse of
// the information matrix, and what they leave open by the factor of whichever matrix is smaller.
#include <algorithm>
#include <cmath>

#include "core/logdet/logdet.hpp"

namespace pyfast {

namespace {

constexpr index kLikely = 4;  // candidates worked out before a floor is known
constexpr index kBlock = InformationMatrix::kTogether;
constexpr double kVectors = 16;  // multiplications that a vector unit does in a nanosecond

}  // namespace

void LogDetGreedy::start_dense(Work& work) {
  const LogDetState& before = problem_->before;
  const index n = candidates_->count(), d = candidates_->dims();
  information_.start(d, 1 / ratio_, work);
  for (index s = 0; s < before.count; ++s) {
    work.spend(8 * d * d);
    information_.add(before.vectors + s * d, sizes_[s] * sizes_[s] - 1);
  }
  close_.resize(static_cast<std::size_t>(n));
  asked_.assign(static_cast<std::size_t>(n), -1);
  rooms_.resize(static_cast<std::size_t>(work.threads()));
  bounded_ = fits_floats();
}

// Lists the largest bound of each of those blocks that have the largest.
void LogDetGreedy::list_dense(Work& work) {
  index top[kLikely];
  index count = 0;
  work.spend(static_cast<index>(tops_.size()));
  for (index b = 0; b < static_cast<index>(tops_.size()); ++b) {
    if (count == kLikely && tops_[b] <= tops_[top[count - 1]]) continue;
    index at = count < kLikely ? count++ : count - 1;
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

// Lowers the bounds of all that may win, and lists those that still may.
void LogDetGreedy::bound_dense(Work& work) {
  const auto list_open = [&] {
    listed_.clear();
    each_that_may_win(floor_, [&](index i) {
      if (!(by_information() ? exact_.known[i] == chosen_ : exact_.known[i] == shown_)) {
        listed_.push_back(i);
      }
    });
  };
  list_open();
  const index d = candidates_->dims();
  if (!bounded_ || !std::isfinite(information_.error())) return;
  // An inverse from before the latest picks gives bounds as well; a new one costs as much as d / 3
  // residuals, which is what those cost whom the old one has been asked about.
  index seen = 0;
  for (const index i : listed_) seen += asked_[i] == information_.inverted() ? 1 : 0;
  if (3 * seen > d || information_.inverted() < 0) {
    information_.invert();
    seen = 0;
  }
  if (seen > 0) {
    listed_.erase(std::remove_if(listed_.begin(), listed_.end(),
                                 [&](index i) { return asked_[i] == information_.inverted(); }),
                  listed_.end());
  }
  const auto count = static_cast<index>(listed_.size());
  const auto operations = static_cast<double>(count) * static_cast<double>(d * d) / 2 / kVectors;
  work.each((count + kBlock - 1) / kBlock, operations, [&](index b, int worker, Work& own) {
    Room& room = rooms_[static_cast<std::size_t>(worker)];
    information_.prepare(room.rows, own);
    room.lengths.resize(kBlock);
    room.bounds.resize(kBlock);
    room.vector.resize(static_cast<std::size_t>(d));
    const index* block = listed_.data() + b * kBlock;
    const index rows = std::min(kBlock, count - b * kBlock);
    own.spend(rows * d * d / 8);
    for (index r = 0; r < rows; ++r) {
      float* to = room.rows.rows.row(r);
      if (narrow_) {
        candidates_->copy(block[r], to);
      } else {
        candidates_->copy(block[r], room.vector.data());
        for (index t = 0; t < d; ++t) to[t] = static_cast<float>(room.vector[t]);
      }
      room.lengths[r] = std::sqrt(lengths_[block[r]] / ratio_);
    }
    information_.bounds(room.rows, rows, room.lengths.data(), room.bounds.data());
    for (index r = 0; r < rows; ++r) {
      double& bound = bound_[block[r]];
      bound = std::min(bound, room.bounds[r]);
      asked_[block[r]] = information_.inverted();
    }
  });
  list_open();
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
    if (!may_win(i, floor_.load(std::memory_order_relaxed))) return;
    Room& room = rooms_[static_cast<std::size_t>(worker)];
    room.vector.resize(static_cast<std::size_t>(d));
    own.spend(d * d);
    candidates_->copy(i, room.vector.data());
    const double residual = information_.residual(room.vector.data());
    exact_.residual[i] = residual;
    exact_.known[i] = chosen_;
    close_[i] = information_.close_error(room.vector.data(), room.spread);
    bound_[i] = std::min(bound_[i], residual + close_[i]);
    raise_floor(residual - close_[i]);
  });
}

// Works out the contenders to all digits of a double; false if that cannot be told.
bool LogDetGreedy::refined(Work& work) {
  if (!dense_ || !bounded_ || !std::isfinite(information_.error())) return false;
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
              settled_[i] = std::max(0.0, found.residual);
              margins_[c] = found.error;
              bound_[i] = std::min(bound_[i], settled_[i] + found.error);
            });
  double sure = 0;
  for (index c = 0; c < count; ++c) sure = std::max(sure, settled_[contenders_[c]] - margins_[c]);
  return std::all_of(margins_.begin(), margins_.end(),
                     [&](double error) { return error <= kLogDetFine * sure; });
}

}  // namespace pyfast
