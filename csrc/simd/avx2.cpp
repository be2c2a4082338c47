#define PYFAST_SIMD_LEVEL avx2
#define PYFAST_VECTOR_BYTES 32
#define PYFAST_TILE_ROWS 2
#define PYFAST_TILE_COLS 3
#include "simd/kernels.hpp"
