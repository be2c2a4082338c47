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
constexpr index kChunkBytes = 4096;  // of the sums' type
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

// The last numbers of some rows, each filled up with zeros, which add nothing to a sum.
template <class In>
__attribute__((noinline)) void pad(const In* from, index stride, int rows, index left, int width,
                                   In* to) {
  for (int r = 0; r < rows; ++r) {
    for (index t = 0; t < width; ++t) to[r * width + t] = t < left ? from[r * stride + t] : In{0};
  }
}

// Halves of a vector, down to two numbers.
template <class Sum, int Count>
struct Halves {
  typedef Sum Vector __attribute__((vector_size(Count * sizeof(Sum))));
  static Sum sum(Vector v) {
    typedef Sum Half __attribute__((vector_size(Count / 2 * sizeof(Sum))));
    struct Both {
      Half low, high;
    } both;
    __builtin_memcpy(&both, &v, sizeof both);
    return Halves<Sum, Count / 2>::sum(both.low + both.high);
  }
};
template <class Sum>
struct Halves<Sum, 2> {
  typedef Sum Vector __attribute__((vector_size(2 * sizeof(Sum))));
  static Sum sum(Vector v) { return v[0] + v[1]; }
};

template <class Sum>
inline Sum tree(Lanes<Sum> lanes) {
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int p = 0; p < half; ++p) lanes.part[p] += lanes.part[p + half];
  }
  return Halves<Sum, Lanes<Sum>::per_part>::sum(lanes.part[0]);
}

struct Product {
  template <class Vector>
  static Vector of(Vector a, Vector b) {
    return a * b;
  }
};

struct SquaredDifference {
  template <class Vector>
  static Vector of(Vector a, Vector b) {
    const Vector difference = a - b;
    return difference * difference;
  }
};

// Rows x Cols pairs at once, so that a number that was loaded serves several of them.
template <class Term, class Sum, int Rows, int Cols>
struct Tile {
  static constexpr int width = Lanes<Sum>::count;
  Lanes<Sum> sums[Rows][Cols];

  Tile() {
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < Cols; ++c) {
        for (int p = 0; p < kParts; ++p) sums[r][c].part[p] = typename VectorOf<Sum>::type{};
      }
    }
  }

  template <class A, class B>
  void add(const A* a, index a_stride, const B* b, index b_stride) {
    for (int p = 0; p < kParts; ++p) {
      const int at = p * Lanes<Sum>::per_part;
      typename VectorOf<Sum>::type left[Rows];
      for (int r = 0; r < Rows; ++r) left[r] = load(a + r * a_stride + at, Sum{});
      for (int c = 0; c < Cols; ++c) {
        const auto right = held(load(b + c * b_stride + at, Sum{}));
        for (int r = 0; r < Rows; ++r) sums[r][c].part[p] += Term::of(left[r], right);
      }
    }
  }

  template <class A, class B>
  void run(const A* a, index a_stride, const B* b, index b_stride, index d, bool fresh, Sum* out,
           index out_stride) {
    index t = 0;
    for (; t + width <= d; t += width) add(a + t, a_stride, b + t, b_stride);
    if (t < d) {
      A a_end[Rows * width];
      B b_end[Cols * width];
      pad(a + t, a_stride, Rows, d - t, width, a_end);
      pad(b + t, b_stride, Cols, d - t, width, b_end);
      add(a_end, width, b_end, width);
    }
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < Cols; ++c) {
        Sum& total = out[r * out_stride + c];
        total = fresh ? tree(sums[r][c]) : total + tree(sums[r][c]);
      }
    }
  }
};

template <class Term, class Sum, int Rows, class A, class B>
inline void strip(const A* a, index a_stride, const B* b, index cols, index b_stride, index d,
                  bool fresh, Sum* out, index out_stride) {
  index j = 0;
  for (; j + kTileCols <= cols; j += kTileCols) {
    Tile<Term, Sum, Rows, kTileCols> tile;
    tile.run(a, a_stride, b + j * b_stride, b_stride, d, fresh, out + j, out_stride);
  }
  for (; j < cols; ++j) {
    Tile<Term, Sum, Rows, 1> tile;
    tile.run(a, a_stride, b + j * b_stride, b_stride, d, fresh, out + j, out_stride);
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

void axpy(double a, const double* x, double* y, index n) {
  for (index i = 0; i < n; ++i) y[i] += a * x[i];
}

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
    axpy,
    centre<float>,
    centre<double>,
    lengths,
    swap_costs<float>,
    swap_costs<double>,
    nearest<float>,
    nearest<double>,
    largest,
    below<float>,
    below<double>,
    valid<float>,
    valid<double>,
    philox,
    add_stripe,
};

}  // namespace pyfast::simd
