// Greedy maximisation of log det(gamma I + c sum_{i in S} v_i v_i^T), |S| = k: each time the i with
// the largest r_i = (c / gamma-scaled) v_i^T H^{-1} v_i, which adds log(1 + r_i).
//
// No d x d matrix. With ratio = c / gamma and the chosen vectors w_1 .. w_t, the rows of L, where
// L L^T = I + ratio W W^T, are what a Cholesky factorisation adds one at a time, and
//   u_i = L^{-1} ratio W v_i,   r_i = ratio v_i^T v_i - u_i^T u_i
// (partial Cholesky with a ridge, or Gram-Schmidt). A new w_{t+1} appends one number to each u_i
// and lowers r_i, so an r_i that has not seen the latest vectors is an upper bound. A candidate is
// brought up to date, by all the vectors it has missed in one reading of its row, only when its
// bound is above the best value known: each row is read a few times, not k times, and no dot is
// wasted on a column that turns out not to be chosen. It stops as soon as its bound is not.
//
// How far r_i is off. What is computed is what exact arithmetic would make of a matrix whose
// entries are off by at most e sqrt(M_ij's diagonals), M = I + ratio W W^T with |a_i|^2 = ratio
// v_i^T v_i for the candidate, e = (roundings of a dot + t + 8) 2^-53 (Higham, Accuracy and
// Stability of Numerical Algorithms, section 10.1). With y = M^{-1} ratio W v_i, for which r_i is
// the least of |a_i - sum_s y_s a_s|^2 + |y|^2, so that |y|^2 <= r_i, and kappa = trace M:
//   |error of r_i| <= 1.0625 e (|a_i| + sum_s |y_s| sqrt(M_ss))^2 <= 4 e (|a_i|^2 + kappa r_i)
// as long as e kappa <= 1/16. The last form widens every bound; the one before it says whether the
// best ones are known to kLogDetFine. Where they are not, or e kappa has grown beyond that, they
// are worked out in more digits (wide_residuals.hpp). Which of the two it is depends on the vectors
// alone, so the bits do not change with threads, types or what was worked out before.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "core/logdet/candidates.hpp"
#include "core/logdet/information.hpp"
#include "core/logdet/wide_residuals.hpp"
#include "core/run/work.hpp"

namespace pyfast {

// Candidates whose r_i is within this fraction of the largest tie; the lowest index wins.
constexpr double kLogDetTie = 1e-10;
// What an r_i that counts may be off by, as a fraction of it.
constexpr double kLogDetFine = 1e-11;

// Vectors chosen before. The factor is L, row-major and lower triangular.
struct LogDetState {
  const double* vectors = nullptr;  // count x dims
  const double* factor = nullptr;   // count x count
  index count = 0;
  double logdet = 0;  // of the matrix so far
};

struct LogDetProblem {
  const Candidates* candidates = nullptr;
  index k = 0;
  double gamma = 1;
  double scale = 1;
  LogDetState before;
};

// Where the answer goes; the last two may be null.
struct LogDetAnswer {
  index* picks = nullptr;     // k, in the order of choice
  double* gains = nullptr;    // k, never increasing but among ties
  double* vectors = nullptr;  // k x dims: the new ones
  double* factor = nullptr;   // (before.count + k)^2: of the old and new ones
};

// Solves one problem after another in the same memory: per candidate before.count + k + 4 numbers,
// twice as many with bounds in float, and (k x dims) for the chosen vectors, all float64; of float
// rows (before.count + k) x (dims + 1280) in float instead of the last. Where digits run out, for
// each candidate that is worked out (3 + words) (before.count + k) numbers more, and another dims
// for each chosen vector.
//
// Problems of float rows are bounded first unless they are tiny: products in float give each r_i an
// interval that holds it for certain, and only those that may be the largest are worked out in
// float64. The picks, and every number that is returned, are the same bits as without. So is it
// with the digits beyond float64: those of few candidates are ever asked for.
class LogDetGreedy {
 public:
  // Returns the log-determinant. k is at most the number of candidates. Throws std::range_error if
  // a squared length, times c / gamma, overflows or is not a number.
  double solve(const LogDetProblem& problem, const LogDetAnswer& answer, Work& work);

 private:
  // r_i and u_i of every candidate as of the first known[i] chosen vectors.
  struct Layer {
    std::vector<index> known;
    std::vector<double> residual;
    // u_i, `stride` numbers apart. Not cleared: most of a large problem's are never used.
    std::unique_ptr<double[]> coefficients;
    std::size_t room = 0;
    index stride = 0;
    void start(index n, index capacity, const std::vector<double>& lengths);
    double* of(index i) { return coefficients.get() + i * stride; }
  };

  struct Room {  // a worker's
    InformationMatrix::Rows rows;
    std::vector<double> vector, lengths, bounds, spread;
  };

  // logdet.cpp: the greedy selection.
  void start(Work& work);
  void measure(Work& work);
  bool is_regular(double square) const;
  double length_of(const double* v);
  void start_before(Work& work);
  index next(Work& work);
  void choose(index i, Work& work);
  void count_in(double length);
  void write(const LogDetAnswer& answer, Work& work);
  index decide(Work& work);
  bool doubles_decide(Work& work);
  void decide_wide(Work& work);
  void start_wide(Work& work);

  // r_i is at most `value` as of so many chosen vectors, and as of more.
  void lower(index i, double value, index known);

  // What may still win: blocks of candidates are passed over by the largest bound in them.
  bool may_win(index i, double best) const;
  template <class Take>
  void each_that_may_win(double best, Take&& take);
  void raise_best(double value);

  // residuals.cpp: bounds and residuals by the k x k factor.
  void start_float_bounds();
  void list(const Layer& layer);
  bool fits_floats() const;
  void list_likely(const Layer& layer);
  void bring_forward(Layer& layer, Work& work);
  void catch_up(Layer& layer, index* rows, index count, std::vector<double>& products, Work& work);
  void advance(Layer& layer, const index* rows, index count, index from, index to,
               std::vector<double>& products, Work& work);
  void dots(const index* rows, index count, index from, index to, double* products);
  void absorb(Layer& layer, index i, index from, index to, double* products);
  void substitute(double* products, index known, index to, double* u, double& residual) const;
  void factor_row(index i, std::vector<double>& row, Work& work);
  double float_error(index i) const;
  bool floats_tell(double length, double residual) const;
  double at_least(index i) const;
  double error_of(index i, double residual, index known) const;
  double close_error_of(index i);
  float* narrow_column(index s) { return narrow_columns_.row(s); }

  // dense.cpp: the same by the d x d information matrix, for more picks than dimensions.
  void start_dense(Work& work);
  bool by_information() const { return dense_ && chosen_ >= candidates_->dims(); }
  void add_fall(index s, const double* w);
  void list_dense(index most, Work& work);
  void list_open();
  void next_dense(Work& work);
  void ask_inverse(Work& work);
  void take_rows(const index* block, index rows, Room& room, Work& work);
  void take_falls(Work& work);
  void take_fall(index i, const float* products, index first, index count, double length);
  void evaluate_dense(Work& work);
  bool refined(Work& work);

  const LogDetProblem* problem_ = nullptr;
  const Candidates* candidates_ = nullptr;
  double ratio_ = 1;
  index chosen_ = 0;    // vectors so far, those of the state included
  index shown_ = 0;     // of them to doubles and floats: those before e kappa grows too large
  index capacity_ = 0;  // all there will be
  bool narrow_ = false, float_bounded_ = false, dense_ = false, wants_factor_ = false;
  bool regular_ = true;  // no square nears the ends of double's range

  std::vector<double> lengths_;  // ratio_ v_i^T v_i
  std::vector<double> bound_;    // no r_i is above it; kTaken once chosen
  std::vector<double> tops_;     // of each block of kTop candidates: no bound is above it
  std::vector<double> values_;   // r_i of the contenders, and then of the pick
  std::vector<double> least_;    // nor below this, if float_bounds_ is up to date with it
  double spare_of_length_ = 0, spare_of_bound_ = 0;  // what may_win() allows for
  std::atomic<double> best_{0};                      // the largest r_i is at least this
  Layer exact_;
  Layer float_bounds_;                 // from float products; unused unless float_bounded_
  std::vector<double> factor_;         // L^T: row q holds entry q of every chosen u
  std::vector<double> pivots_;         // diagonal of L
  std::vector<double> columns_;        // the newly chosen vectors; unused if narrow_
  AlignedRows<float> narrow_columns_;  // the same as floats, after the old ones rounded
  index narrow_stride_ = 0;            // from one to the next
  std::vector<double> float_errors_;   // per sqrt(lengths_[i]), as of the first s chosen vectors
  double chosen_lengths_ = 0;          // the sum of the chosen vectors' lengths_
  std::vector<double> sizes_;          // sqrt(M_ss) of the chosen ones
  std::vector<double> errors_;         // e, as of the first s chosen vectors
  std::vector<double> kappas_;         // trace M, likewise
  double longest_ = 0;                 // of all lengths, the state's too
  std::vector<index> listed_, picks_;
  std::vector<index> contenders_;    // for the next pick
  std::vector<double> margins_;      // by which their residuals may be off
  std::vector<double> multipliers_;  // y of one candidate
  std::unique_ptr<WideResiduals> wide_;
  bool was_wide_ = false;                      // how the latest pick was decided
  std::vector<std::vector<double>> products_;  // one per worker

  InformationMatrix information_;
  bool floats_fit_ = false;          // whether floats hold what its bounds are made of
  std::vector<double> falls_;        // y of the first d chosen vectors: see dense.cpp
  AlignedRows<float> fall_panels_;   // y / sqrt(ratio_) of each, as panel_dots takes them
  std::vector<double> fall_errors_;  // of products with it, over |v|
  index falls_from_ = 0;             // those before are not known well enough
  double fresh_ = 0;                 // residual of a pick when that was looked at last
  std::vector<index> as_of_;         // how many chosen vectors each bound_ has seen
  std::vector<index> asking_;        // for a bound by the inverse
  std::vector<double> close_;        // error of the residuals that information_ made
  std::vector<Room> rooms_;
};

constexpr double kTaken = -1;  // the bound of a chosen one
constexpr index kTop = 64;

// Whether i may be the pick, or tie with it, by what doubles make of its residual: that is at most
// 2 error_of() above what i is bound by, and `best` at most what they make of the best.
inline bool LogDetGreedy::may_win(index i, double best) const {
  if (bound_[i] == kTaken) return false;
  const double spare = spare_of_length_ * lengths_[i] + spare_of_bound_ * bound_[i];
  return bound_[i] + spare >= best * (1 - kLogDetTie);
}

inline void LogDetGreedy::lower(index i, double value, index known) {
  bound_[i] = std::min(bound_[i], value);
  if (dense_) as_of_[i] = std::max(as_of_[i], known);
}

template <class Take>
void LogDetGreedy::each_that_may_win(double best, Take&& take) {
  const auto n = static_cast<index>(bound_.size());
  const double* bounds = bound_.data();
  const double spare = spare_of_length_ * longest_, grown = 1 + spare_of_bound_;
  const double least = best * (1 - kLogDetTie);
  for (index first = 0; first < n; first += kTop) {
    double& top = tops_[first / kTop];
    if (top * grown + spare < least) continue;
    const index end = std::min(first + kTop, n);
    double largest = kTaken;
    for (index i = first; i < end; ++i) {
      largest = std::max(largest, bounds[i]);
      if (bounds[i] * grown + spare >= least && may_win(i, best)) take(i);
    }
    top = largest;
  }
}

}  // namespace pyfast
