#define PYFAST_SIMD_LEVEL baseline
#define PYFAST_VECTOR_BYTES 16
#define PYFAST_TILE_ROWS 1
#define PYFAST_TILE_COLS 3
#include "simd/kernels.hpp"
