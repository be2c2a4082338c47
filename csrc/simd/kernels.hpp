// The source that every level compiles; see simd.hpp for what it computes. The including file
// defines PYFAST_SIMD_LEVEL, its name; PYFAST_VECTOR_BYTES, the width of its registers; and
// PYFAST_TILE_ROWS x PYFAST_TILE_COLS, as many pairs as have their sums in registers at once.
//
// It is compiled with flags that the rest of the library is not, so nothing of it may be shared
// with other translation units: no standard header with functions in it (the linker keeps one copy
// of an inline function, perhaps the one that needs AVX), everything in an unnamed namespace.

#if defined(__SSE2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 on its own _mm512_undefined_pd
#endif
#include <immintrin.h>  // only functions that are always inlined
#endif

#include "simd/simd.hpp"

namespace pyfast::simd {

namespace {

constexpr int kBytes = 64;  // of all partial sums of one pair, on every level
constexpr int kParts = kBytes / PYFAST_VECTOR_BYTES;
constexpr int kTileRows = PYFAST_TILE_ROWS;
constexpr int kTileCols = PYFAST_TILE_COLS;

// GCC's vector extensions, which Clang has too: arithmetic is element by element. Unaligned
// twins serve for loads and stores.
typedef float Floats __attribute__((vector_size(PYFAST_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(PYFAST_VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(PYFAST_VECTOR_BYTES / 2)));
typedef Floats LooseFloats __attribute__((aligned(4), may_alias));
typedef Doubles LooseDoubles __attribute__((aligned(8), may_alias));
typedef HalfFloats LooseHalfFloats __attribute__((aligned(4), may_alias));

template <class Sum>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef Floats type;
};
template <>
struct VectorOf<double> {
  typedef Doubles type;
};

// All partial sums of a pair, or as many numbers of a row.
template <class Sum>
struct Lanes {
  static constexpr int count = kBytes / static_cast<int>(sizeof(Sum));
  static constexpr int per_part = count / kParts;
  typename VectorOf<Sum>::type part[kParts];
};

inline Floats load(const float* from, float) { return *reinterpret_cast<const LooseFloats*>(from); }
inline Doubles load(const double* from, double) {
  return *reinterpret_cast<const LooseDoubles*>(from);
}
inline Doubles load(const float* from, double) {
  const HalfFloats narrow = *reinterpret_cast<const LooseHalfFloats*>(from);
#if defined(__AVX512F__)  // GCC 12 turns the conversion below into one through memory
  return _mm512_cvtps_pd(narrow);
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(narrow);
#else
  return __builtin_convertvector(narrow, Doubles);
#endif
}

inline void store(float* to, Floats v) { *reinterpret_cast<LooseFloats*>(to) = v; }
inline void store(double* to, Doubles v) { *reinterpret_cast<LooseDoubles*>(to) = v; }

// Stays in a register: without this, GCC loads a row anew for every pair that it is in.
template <class Vector>
inline Vector held(Vector v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#endif
  return v;
}

// a b + c, rounded once, on every level: a machine without the instruction computes it slowly.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  for (int l = 0; l < Lanes<float>::per_part; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return c;
#endif
}
inline Doubles fused(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  for (int l = 0; l < Lanes<double>::per_part; ++l) c[l] = __builtin_fma(a[l], b[l], c[l]);
  return c;
#endif
}

inline Floats root(Floats v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#else
  for (int l = 0; l < Lanes<float>::per_part; ++l) v[l] = __builtin_sqrtf(v[l]);
  return v;
#endif
}

#include "simd/trees.hpp"

struct Product {
  template <class Vector>
  static Vector add_to(Vector sum, Vector a, Vector b) {
    return fused(a, b, sum);
  }
};

struct SquaredDifference {
  template <class Vector>
  static Vector add_to(Vector sum, Vector a, Vector b) {
    const Vector difference = a - b;
    return fused(difference, difference, sum);
  }
};

// The sums of Rows x Cols pairs, row by row: a number that was loaded serves several of them.
template <class Sum, int Rows, int Cols>
struct Tile {
  Lanes<Sum> sums[Rows * Cols];
};

template <class Sum, int Rows, int Cols>
inline void clear(Tile<Sum, Rows, Cols>& tile) {
  for (Lanes<Sum>& sum : tile.sums) {
    // held() because GCC, which keeps the sums in registers, clears memory for them as well.
    for (int p = 0; p < kParts; ++p) sum.part[p] = held(typename VectorOf<Sum>::type{});
  }
}

template <class Term, class Sum, int Rows, int Cols, class A, class B>
inline void add(Tile<Sum, Rows, Cols>& tile, const A* const* a, const B* const* b, index t) {
  for (int p = 0; p < kParts; ++p) {
    const index at = t + p * Lanes<Sum>::per_part;
    typename VectorOf<Sum>::type left[Rows];
    for (int r = 0; r < Rows; ++r) left[r] = held(load(a[r] + at, Sum{}));
    for (int c = 0; c < Cols; ++c) {
      const auto right = held(load(b[c] + at, Sum{}));
      for (int r = 0; r < Rows; ++r) {
        auto& sum = tile.sums[r * Cols + c].part[p];
        sum = Term::add_to(sum, left[r], right);
      }
    }
  }
}

// The last numbers of some rows, each filled up with zeros, which add nothing to a sum.
template <class In>
__attribute__((noinline)) void pad(const In* const* from, index at, int rows, index left, int width,
                                   In* to) {
  for (int r = 0; r < rows; ++r) {
    for (index t = 0; t < width; ++t) to[r * width + t] = t < left ? from[r][at + t] : In{0};
  }
}

// The pairs' totals over one chunk.
template <class Term, class Sum, int Rows, int Cols, class A, class B>
inline void sum_pairs(const A* const* a, const B* const* b, index d, Sum* totals) {
  constexpr int width = Lanes<Sum>::count;
  Tile<Sum, Rows, Cols> tile;
  clear(tile);
  index t = 0;
  for (; t + width <= d; t += width) add<Term>(tile, a, b, t);
  if (t < d) {
    A a_end[Rows * width];
    B b_end[Cols * width];
    pad(a, t, Rows, d - t, width, a_end);
    pad(b, t, Cols, d - t, width, b_end);
    const A* a_rows[Rows];
    const B* b_rows[Cols];
    for (int r = 0; r < Rows; ++r) a_rows[r] = a_end + r * width;
    for (int c = 0; c < Cols; ++c) b_rows[c] = b_end + c * width;
    add<Term>(tile, a_rows, b_rows, 0);
  }
  constexpr int group = Folded<Sum>::count, groups = (Rows * Cols + group - 1) / group;
  Folded<Sum> folded[groups * group] = {};
  for (int i = 0; i < Rows * Cols; ++i) folded[i] = fold(tile.sums[i]);
  Sum all[groups * group];
  for (int g = 0; g < groups; ++g) finish(folded + g * group, all + g * group);
  for (int i = 0; i < Rows * Cols; ++i) totals[i] = all[i];
}

template <class Term, class Sum, int Rows, int Cols, class A, class B>
inline void tile(const A* a, index a_stride, const B* b, index b_stride, index d, bool fresh,
                 Sum* out, index out_stride) {
  const A* a_rows[Rows];
  const B* b_rows[Cols];
  for (int r = 0; r < Rows; ++r) a_rows[r] = a + r * a_stride;
  for (int c = 0; c < Cols; ++c) b_rows[c] = b + c * b_stride;
  Sum totals[Rows * Cols];
  sum_pairs<Term, Sum, Rows, Cols>(a_rows, b_rows, d, totals);
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Cols; ++c) {
      Sum& total = out[r * out_stride + c];
      total = fresh ? totals[r * Cols + c] : total + totals[r * Cols + c];
    }
  }
}

// Fewer columns than a tile's: together, because one pair's additions wait for each other.
template <class Term, class Sum, int Rows, int Cols, class A, class B>
inline void narrower(const A* a, index a_stride, const B* b, index cols, index b_stride, index d,
                     bool fresh, Sum* out, index out_stride) {
  if constexpr (Cols > 1) {
    if (cols < Cols) {
      return narrower<Term, Sum, Rows, Cols - 1>(a, a_stride, b, cols, b_stride, d, fresh, out,
                                                 out_stride);
    }
  }
  tile<Term, Sum, Rows, Cols>(a, a_stride, b, b_stride, d, fresh, out, out_stride);
}

template <class Term, class Sum, int Rows, class A, class B>
inline void strip(const A* a, index a_stride, const B* b, index cols, index b_stride, index d,
                  bool fresh, Sum* out, index out_stride) {
  index j = 0;
  for (; j + kTileCols <= cols; j += kTileCols) {
    tile<Term, Sum, Rows, kTileCols>(a, a_stride, b + j * b_stride, b_stride, d, fresh, out + j,
                                     out_stride);
  }
  constexpr int most = Rows == 1 ? kTileCols - 1 : 1;
  for (; j < cols; j += most) {
    narrower<Term, Sum, Rows, most>(a, a_stride, b + j * b_stride, cols - j, b_stride, d, fresh,
                                    out + j, out_stride);
  }
}

// Few enough rows of b to stay in the first-level cache while all rows of a pass by.
template <class Term, class Sum, class A, class B>
void panel(const A* a, index rows, index a_stride, const B* b, index cols, index b_stride, index d,
           bool fresh, Sum* out, index out_stride) {
  index i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    strip<Term, Sum, kTileRows>(a + i * a_stride, a_stride, b, cols, b_stride, d, fresh,
                                out + i * out_stride, out_stride);
  }
  for (; i < rows; ++i) {
    strip<Term, Sum, 1>(a + i * a_stride, a_stride, b, cols, b_stride, d, fresh,
                        out + i * out_stride, out_stride);
  }
}

template <class Term, class Sum, class A, class B>
void block(const A* a, index rows, index a_stride, const B* b, index cols, index b_stride, index d,
           Sum* out, index out_stride) {
  constexpr index kPanelBytes = 16384;  // half of a small first-level cache
  constexpr index kRows = 32;           // of a: their pieces of a chunk stay in the second level
  constexpr index kChunk = kChunkBytes / static_cast<index>(sizeof(Sum));
  const index longest = d < kChunk ? d : kChunk;
  index panel_cols = kPanelBytes / (longest * static_cast<index>(sizeof(B)) + 1);
  panel_cols = panel_cols < kTileCols ? kTileCols : panel_cols / kTileCols * kTileCols;
  for (index i = 0; i < rows; i += kRows) {
    const index i_count = rows - i < kRows ? rows - i : kRows;
    for (index t = 0; t == 0 || t < d; t += kChunk) {
      const index t_count = d - t < kChunk ? d - t : kChunk;
      for (index j = 0; j < cols; j += panel_cols) {
        const index j_count = cols - j < panel_cols ? cols - j : panel_cols;
        panel<Term>(a + i * a_stride + t, i_count, a_stride, b + j * b_stride + t, j_count,
                    b_stride, t_count, t == 0, out + i * out_stride + j, out_stride);
      }
    }
  }
}

#include "simd/factor_kernels.hpp"
#include "simd/kmedoids_kernels.hpp"
#include "simd/logdet_kernels.hpp"
#include "simd/pair_kernels.hpp"
#include "simd/panel_kernels.hpp"
#include "simd/search_kernels.hpp"
#include "simd/sketch_kernels.hpp"

}  // namespace

#define PYFAST_JOIN2(a, b) a##b
#define PYFAST_JOIN(a, b) PYFAST_JOIN2(a, b)
#define PYFAST_TEXT2(a) #a
#define PYFAST_TEXT(a) PYFAST_TEXT2(a)

extern const Kernels PYFAST_JOIN(kernels_, PYFAST_SIMD_LEVEL);
const Kernels PYFAST_JOIN(kernels_, PYFAST_SIMD_LEVEL) = {
    PYFAST_TEXT(PYFAST_SIMD_LEVEL),
    block<Product, float>,
    block<SquaredDifference, float>,
    block<Product, double>,
    block<SquaredDifference, double>,
    block<Product, double>,
    block<SquaredDifference, double>,
    block<Product, double>,
    pair_squares<float>,
    pair_squares<double>,
    squares_to<float, float>,
    squares_to<double, float>,
    squares_to<double, double>,
    narrow,
    roots,
    swap_costs<float>,
    swap_costs<double>,
    nearest<float>,
    nearest<double>,
    below<float>,
    below<double>,
    to_bytes<float>,
    to_bytes<double>,
    tile_to_bytes<float>,
    tile_to_bytes<double>,
    within,
    mirrored<float>,
    mirrored<double>,
    valid<float>,
    valid<double>,
    squared_norms<float>,
    squared_norms<double>,
    float_dots,
    panel_dots,
    to_panel,
    philox,
    add_stripe,
    add_products,
    add_scaled,
    factorise,
    forward,
    backward,
    invert,
    panel_distances,
};

}  // namespace pyfast::simd
