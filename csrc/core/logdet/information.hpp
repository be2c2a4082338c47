// The information matrix of the chosen vectors, d x d: for selections of more than d of them, whose
// k x k factor (logdet.hpp) would grow and whose candidates would have ever more to catch up with.
//
//   A = (gamma / c) I + sum_s w_s w_s^T = L L^T,   r_i = v_i^T A^{-1} v_i = |L^{-1} v_i|^2
//
// is the r_i of logdet.hpp, fresh from a row at d^2 / 2 multiplications however many were chosen.
//
// How far r_i is off. The sum is made of twice the digits of a double and rounded at the end, once
// or twice; Cholesky's factor and the substitution are those of a matrix whose entries are off by
// (3 d + 2) 2^-53 |L| |L|^T (Higham, Accuracy and Stability, 10.3 and 8.5). So, with y = A^{-1}
// v_i,
//   |error of r_i| <= 1.07 2^-53 ((3 d + d / 8 + 16) ||L|^T |y||^2 + 4 (sum_s |y_s| sqrt(A_ss))^2),
// and both squares are at most trace(A) |y|^2 <= kappa r_i, kappa = c / gamma trace(A).
//
// Where that is too much, once more from y: with p = v_i - A y,
//   r_i = 2 v_i^T y - y^T A y + p^T A^{-1} p,
// the first two in twice the digits and the last one at most |p|^2 c / gamma, the square of a
// rounding: |p| <= 2^-53 sqrt(trace A) ((3 d + 16) ||L|^T |y|| + 4 sum_s |y_s| sqrt(A_ss)).
//
// The bound first: the same in float, for many rows at once, by the inverse of L. Each entry of
// L^{-1} v_i is off by the roundings of its products, so its length is off by no more than
// float_dot_error() |v_i|.
#pragma once

#include <vector>

#include "core/run/memory.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

class InformationMatrix {
 public:
  static constexpr index kWidest = 512;  // numbers of a vector: d^3 / 6 each time is not too much

  void start(index d, double ridge, Work& work);
  void add(const double* w, double length);  // ratio w^T w
  index count() const { return count_; }

  // What r_i may be off by, as a fraction of it, before any is looked at closely; infinite if it is
  // too much for the bounds above to hold.
  double error() const;

  // Brings the factor up to date; the others are of the latest factor.
  void factorise();
  void solve(double* v, std::vector<double>& room) const;               // makes A^{-1} v of v
  double residual(double* v) const;                                     // makes L^{-1} v of v
  double close_error(double* solved, std::vector<double>& room) const;  // of what residual() made

  struct Refined {
    double residual, error;
  };
  // The residual to about all digits of a double. Squares of vectors must be well inside its range.
  Refined refined(const double* v, std::vector<double>& room) const;

  // Brings the float inverse up to date; bounds() is of the latest. Residuals only fall: they are
  // bounds of all later ones.
  void invert();
  index inverted() const { return inverted_; }  // as of so many vectors

  // Room for rows of floats that are looked at together, and what they become.
  struct Rows {
    AlignedRows<float> rows, products;
    std::vector<double> squares;
  };
  static constexpr index kTogether = 64;
  void prepare(Rows& rows, Work& work) const;
  // bounds[i] >= r_i of the first `count` rows, whose lengths are |v_i|.
  void bounds(Rows& rows, index count, const double* lengths, double* out) const;

 private:
  index panels() const;

  index d_ = 0, count_ = 0, factorised_ = -1, inverted_ = -1;
  double ridge_ = 1, kappa_ = 0, float_error_ = 0;
  std::vector<double> high_, low_, factor_, inverse_, roots_;  // roots_: sqrt(A_ss)
  AlignedRows<float>
      panels_;  // a row for each 16 rows of L^{-1}: their first numbers, their second
};

}  // namespace pyfast
