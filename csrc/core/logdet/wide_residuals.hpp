// The residuals of logdet.hpp in numbers of as many digits as they may lose, for candidates that
// doubles cannot tell apart. With t = gamma / c and the chosen w_1 .. w_m,
//   L D L^T = t I + W W^T,   z_i = L^{-1} W v_i,   rho_i = v_i^T v_i - sum_q z_iq^2 / D_q,
// so D_s = t + rho_s when w_s is chosen, and r_i = rho_i / t.
//
// How many digits: a Cholesky factorisation that rounds by a relative u is the exact one of a
// matrix whose entries are off by n u sqrt(M_ii M_jj), n a small multiple of d + m, which moves any
// r_i by no more than 4 n u kappa of it, kappa = sum_s (1 + |w_s|^2 / t). The words hold kappa and
// kSpareBits more, so r_i is right to far more than a double holds, however large kappa is.
#pragma once

#include <memory>
#include <type_traits>

#include "core/logdet/candidates.hpp"
#include "core/run/work.hpp"

namespace pyfast {

constexpr int kSpareBits = 100;
constexpr int kMostWords = 18;

// body(std::integral_constant<int, words>) for kappa of so many bits; kappa is finite, so there are
// enough.
template <class Body>
void with_words(double bits, Body&& body) {
  const auto enough = [bits](int words) { return bits + kSpareBits <= 64 * words; };
  if (enough(3)) return body(std::integral_constant<int, 3>());
  if (enough(5)) return body(std::integral_constant<int, 5>());
  if (enough(9)) return body(std::integral_constant<int, 9>());
  body(std::integral_constant<int, kMostWords>());
}

class WideResiduals {
 public:
  // Bits of kappa, as above. Candidates must outlive it.
  static std::unique_ptr<WideResiduals> make(const Candidates& candidates, double gamma,
                                             double scale, double bits);
  virtual ~WideResiduals() = default;

  virtual index chosen() const = 0;
  virtual void choose(const double* vector, Work& work) = 0;  // of none of the candidates
  virtual void choose(index i, Work& work) = 0;
  // r_i as of all chosen ones. Several workers may ask, each for its own i.
  virtual double residual(index i, Work& work) = 0;
  // Row s of the factor that logdet.hpp describes, without its pivot: s numbers.
  virtual void factor_row(index s, double* out) const = 0;
};

// ratio v^T v, right to the last digits of a double; infinite beyond its range, NaN if v is not
// finite.
double wide_length(const double* v, index d, double gamma, double scale);

}  // namespace pyfast
