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
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "core/candidates.hpp"
#include "core/parallel.hpp"

namespace pyfast {

// Candidates whose r_i is within this fraction of the largest tie; the lowest index wins.
// Rounding is 1e-14 or less of it in any usual case, so equal vectors in exact arithmetic tie.
constexpr double kLogDetTie = 1e-10;

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
  double* gains = nullptr;    // k, never increasing
  double* vectors = nullptr;  // k x dims: the new ones
  double* factor = nullptr;   // (before.count + k)^2: of the old and new ones
};

// Solves one problem after another in the same memory: per candidate before.count + k + 4 numbers,
// twice as many with a sieve, and (k x dims) for the chosen vectors, all float64; for float rows
// (before.count + k) x (dims + 1280) in float instead of the last.
//
// Problems of float rows are sieved unless they are tiny: products in float give each r_i an
// interval that holds it for certain, and only those that may be the largest are worked out in
// float64. The picks, and every number that is returned, are the same bits as without.
class LogDetGreedy {
 public:
  // Returns the log-determinant. k is at most the number of candidates. With threads > 1 the rows
  // share a team; a call from inside parallel_for passes threads = 1. Throws std::range_error if
  // a squared length, times c / gamma, overflows or is not a number.
  double solve(const LogDetProblem& problem, const LogDetAnswer& answer, int threads,
               Cancel& cancel, Token& token);

 private:
  // r_i and u_i of every candidate as of the first known[i] chosen vectors.
  struct Layer {
    std::vector<index> known;
    std::vector<double> residual;
    // u_i, capacity_ numbers apart. Not cleared: most of a large problem's are never used.
    std::unique_ptr<double[]> coefficients;
    std::size_t room = 0;
    void start(index n, index capacity, const std::vector<double>& lengths);
  };

  void start(Token& token);
  void start_sieve();
  index next(Token& token);
  void choose(index i);
  void write(const LogDetAnswer& answer, Token& token);
  template <class Wanted>
  void list(const Layer& layer, Wanted&& wanted);
  void list_likely(const Layer& layer);
  void bring_forward(Layer& layer, Token& token);
  index lowest_tied(Token& token);
  void catch_up(Layer& layer, index* rows, index count, std::vector<double>& products,
                Token& token);
  void advance(Layer& layer, const index* rows, index count, index from, index to,
               std::vector<double>& products, Token& token);
  void absorb(Layer& layer, index i, index from, index to, double* products);
  float* narrow_column(index s) { return narrow_columns_.data() + s * narrow_stride_; }
  double sieve_error(index i) const;
  void count_in(double length);
  double at_least(index i) const;
  void raise_floor(double value);
  template <class Body>
  void in_parallel(index count, double operations, Token& token, Body&& body);

  const LogDetProblem* problem_ = nullptr;
  const Candidates* candidates_ = nullptr;
  int threads_ = 1;
  Cancel* cancel_ = nullptr;
  double ratio_ = 1;
  index chosen_ = 0;    // vectors so far, those of the state included
  index capacity_ = 0;  // all there will be
  bool narrow_ = false, sieved_ = false;

  std::vector<double> lengths_;   // ratio_ v_i^T v_i
  std::vector<double> bound_;     // no r_i is above it; kTaken once chosen
  std::vector<double> least_;     // nor below this, if the sieve is up to date with it
  std::atomic<double> floor_{0};  // the largest r_i is at least this
  Layer exact_;
  Layer sieve_;                        // from float products; unused unless sieved_
  std::vector<double> factor_;         // L^T: row q holds entry q of every chosen u
  std::vector<double> pivots_;         // diagonal of L
  std::vector<double> columns_;        // the newly chosen vectors; unused if narrow_
  std::vector<float> narrow_columns_;  // the same as floats, after the old ones rounded
  index narrow_stride_ = 0;            // from one to the next
  std::vector<double> sieve_errors_;   // per sqrt(lengths_[i]), as of the first s chosen vectors
  double chosen_lengths_ = 0;          // the sum of the chosen vectors' lengths_
  std::vector<index> listed_;
  std::vector<std::vector<double>> products_;  // one per worker
};

}  // namespace pyfast
