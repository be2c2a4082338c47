#include "core/naive/logdet.hpp"

#include <algorithm>
#include <cmath>

#include "core/logdet/logdet.hpp"

namespace pyfast::naive {

LogDetPicks logdet(MatrixView<double> v, index k, double gamma, double scale) {
  const index n = v.rows, d = v.cols;
  std::vector<double> inverse(static_cast<std::size_t>(d * d), 0.0);
  for (index t = 0; t < d; ++t) inverse[t * d + t] = 1 / gamma;
  const auto times = [&](index i) {
    std::vector<double> out(static_cast<std::size_t>(d), 0.0);
    for (index s = 0; s < d; ++s) {
      for (index t = 0; t < d; ++t) out[s] += inverse[s * d + t] * v.row(i)[t];
    }
    return out;
  };
  LogDetPicks found;
  found.logdet = static_cast<double>(d) * std::log(gamma);
  for (index step = 0; step < k; ++step) {
    std::vector<double> value(static_cast<std::size_t>(n), 0.0);
    for (index i = 0; i < n; ++i) {
      const std::vector<double> hv = times(i);
      for (index t = 0; t < d; ++t) value[i] += scale * v.row(i)[t] * hv[t];
      if (std::count(found.picks.begin(), found.picks.end(), i) > 0) value[i] = -1;
    }
    const double largest = std::max(*std::max_element(value.begin(), value.end()), 0.0);
    index pick = 0;
    while (value[pick] < largest * (1 - kLogDetTie)) ++pick;
    const std::vector<double> hv = times(pick);
    for (index s = 0; s < d; ++s) {
      for (index t = 0; t < d; ++t) {
        inverse[s * d + t] -= scale * hv[s] * hv[t] / (1 + value[pick]);
      }
    }
    found.picks.push_back(pick);
    found.gains.push_back(std::log1p(value[pick]));
    found.logdet += found.gains.back();
  }
  return found;
}

}  // namespace pyfast::naive
