// Whether a matrix of distances is symmetric, as far as numpy.allclose would say.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/distance/byte_bounds.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"
#include "simd/simd.hpp"

namespace pyfast {

template <class T>
bool close(T a, T b) {  // numpy.allclose: rtol 1e-5, atol 1e-8
  const double x = static_cast<double>(a), y = static_cast<double>(b);
  return std::abs(x - y) <= 1e-8 + 1e-5 * std::abs(y);
}

// Flat position of the first D[i, j] above the diagonal that is far from D[j, i], tile by tile so
// that both sides stay in cache; -1 if there is none.
template <class T>
index first_asymmetric(const T* d, index n, Work& work) {
  constexpr index kTile = 64;
  for (index i0 = 0; i0 < n; i0 += kTile) {
    work.spend(kTile * n);
    for (index j0 = i0; j0 < n; j0 += kTile) {
      work.spend(2 * kTile * kTile);
      for (index i = i0; i < std::min(i0 + kTile, n); ++i) {
        for (index j = std::max(j0, i + 1); j < std::min(j0 + kTile, n); ++j) {
          if (!close(d[i * n + j], d[j * n + i])) return i * n + j;
        }
      }
    }
  }
  return -1;
}

// Whether the n x n distances are surely finite, >= 0 and symmetric, in one pass over them, which
// makes their bounds too, if asked. False may mean that first_asymmetric() and a look at each value
// have to tell.
template <class T>
bool surely_distances(const T* d, index n, Work& work, ByteBounds<T>* bounds = nullptr) {
  constexpr index kStrip = 64;
  const simd::ByteRows<T> bytes = bounds != nullptr ? bounds->bytes() : simd::ByteRows<T>{};
  std::atomic<bool> fine{true};
  work.each((n + kStrip - 1) / kStrip, static_cast<double>(n * n),
            [&](index strip, int, Work& own) {
              if (!fine) return;
              own.spend(kStrip * n);
              const simd::Kernels& kernels = simd::kernels();
              if constexpr (sizeof(T) == sizeof(float)) {
                if (!kernels.mirrored_f32(d, n, strip * kStrip, bytes)) fine = false;
              } else {
                if (!kernels.mirrored_f64(d, n, strip * kStrip, bytes)) fine = false;
              }
            });
  return fine;
}

}  // namespace pyfast
