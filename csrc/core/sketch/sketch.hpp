// XOR stripes, version 1: a sparse Johnson-Lindenstrauss projection of n numbers to K = 2^L, 7 <= L
// <= 20. docs/xor-stripes.md is the specification, pyfast/sketch/reference.py the same in numpy.
//
//   v is cut into stripes of K numbers, the last one filled up with zeros. Stripe g of module m is
//   permuted by an XOR and its signs are drawn anew:
//     X(g)    = philox(g, 0, m, 0)[0] & (K - 1)
//     S(g, w) = bit (w & 31) of word ((w >> 5) & 3) of philox(g, w >> 7, m, 1)
//     y[w]   += (-1)^S(g, w) v[g K + (w ^ X(g))]
//   in float, g ascending, 64 stripes at a time: the sum of such a chunk starts from zero, and the
//   chunks' sums are added to y in order. So the bits do not depend on threads or vectors.
//
// An aligned slab of y needs, of each stripe, an aligned slab of the same size: slabs are the work
// items. The signs of a slab are drawn once for all rows.
#pragma once

#include "core/run/random.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

constexpr index kSmallestSketch = index{1} << 7;
constexpr index kLargestSketch = index{1} << 20;
constexpr index kChunkStripes = 64;

struct StripeAddress {
  PhiloxKey key{};
  std::uint32_t module = 0;
  index first_stripe = 0;  // of column 0: a multiple of kChunkStripes, so that chunks stay whole
};

// y_r += the sketch of row r, for all rows; y is rows x dim.
void add_sketch(MatrixView<float> v, index dim, const StripeAddress& address, float* y, Work& work);

// What gradients of a matrix are made of: for response b, sum_t wide_bt narrow_bt^T over its
// tokens, (size, rank). wide is (responses, tokens, size), narrow (responses, tokens, rank). Each
// number is one chain of fused multiply-adds, t ascending from +0: the same bits however it is cut
// up.
struct Factors {
  const float* wide;
  const float* narrow;
  index responses, tokens, size, rank;
};

// The same for gradients that are made piece by piece and never written to memory; norms[b] is the
// sum of the squares of gradient b in double.
void add_sketch(const Factors& factors, index dim, const StripeAddress& address, float* y,
                double* norms, Work& work);

// The gradients themselves: out is responses x size x rank.
void multiply(const Factors& factors, float* out, Work& work);

}  // namespace pyfast
