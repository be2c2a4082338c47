#define PYFAST_SIMD_LEVEL avx512
#define PYFAST_VECTOR_BYTES 64
#define PYFAST_TILE_ROWS 4
#define PYFAST_TILE_COLS 6
#include "simd/kernels.hpp"
