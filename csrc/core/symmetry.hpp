// Whether a matrix of distances is symmetric, as far as numpy.allclose would say.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "core/views.hpp"

namespace pyfast {

template <class T>
bool close(T a, T b) {  // numpy.allclose: rtol 1e-5, atol 1e-8
  const double x = static_cast<double>(a), y = static_cast<double>(b);
  return std::abs(x - y) <= 1e-8 + 1e-5 * std::abs(y);
}

// Flat position of the first D[i, j] above the diagonal that is far from D[j, i], tile by tile so
// that both sides stay in cache; -1 if there is none.
template <class T>
index first_asymmetric(const T* d, index n, Token& token) {
  constexpr index kTile = 64;
  for (index i0 = 0; i0 < n; i0 += kTile) {
    for (index j0 = i0; j0 < n; j0 += kTile) {
      token.spend(2 * kTile * kTile);
      for (index i = i0; i < std::min(i0 + kTile, n); ++i) {
        for (index j = std::max(j0, i + 1); j < std::min(j0 + kTile, n); ++j) {
          if (!close(d[i * n + j], d[j * n + i])) return i * n + j;
        }
      }
    }
  }
  return -1;
}

}  // namespace pyfast
