// The kernels of the log-det selection. A part of kernels.hpp, which includes it where it stands:
// inside the unnamed namespace of one instruction set, so it has no includes of its own.

// a b + sum, fused where that is an instruction: for sums whose bits that cannot change, because
// products of two floats are exact in double, or whose bits do not matter.
template <class Vector>
inline Vector quickly_fused(Vector a, Vector b, Vector sum) {
#if defined(__AVX512F__) || defined(__FMA__)
  return fused(a, b, sum);
#else
  return a * b + sum;
#endif
}

inline Doubles add_square(Doubles v, Doubles sum, float) { return quickly_fused(v, v, sum); }
inline Doubles add_square(Doubles v, Doubles sum, double) { return fused(v, v, sum); }

// Adds those of a chunk at most to `out`, for runs `apart` numbers from each other: several at
// once, because the additions of one wait for each other. What stands kSquaresAhead bytes on is
// called towards the core meanwhile.
constexpr index kSquaresAhead = 16384;
template <class T, int Runs>
inline void add_squares(const T* x, index apart, index length, double* out) {
  constexpr int width = Lanes<double>::count, per_part = Lanes<double>::per_part;
  constexpr index line = 64 / sizeof(T), ahead = kSquaresAhead / sizeof(T);
  Lanes<double> sums[Runs];
  for (int r = 0; r < Runs; ++r) {
    for (int p = 0; p < kParts; ++p) sums[r].part[p] = Doubles{};
  }
  const auto add = [&](const T* from, index stride) {
    for (int p = 0; p < kParts; ++p) {
      for (int r = 0; r < Runs; ++r) {
        const Doubles v = held(load(from + r * stride + p * per_part, 0.0));
        sums[r].part[p] = add_square(v, sums[r].part[p], T{});
      }
    }
  };
  index t = 0;
  for (; t + width <= length; t += width) {
    for (int r = 0; r < Runs && t % line == 0; ++r) {
      __builtin_prefetch(x + r * apart + t + ahead, 0, 2);
    }
    add(x + t, apart);
  }
  if (t < length) {
    T rest[Runs * width];
    const T* runs[Runs];
    for (int r = 0; r < Runs; ++r) runs[r] = x + r * apart;
    pad(runs, t, Runs, length - t, width, rest);
    add(rest, width);
  }
  for (int r = 0; r < Runs; ++r) out[r] += tree(fold(sums[r]));
}

// Long rows one after the other, two chunks at once, because memory is read fastest in order.
template <class T>
void squared_norms(const T* x, index rows, index stride, index d, double* out) {
  constexpr index chunk = kChunkBytes / 8;
  const auto piece = [&](index t) { return d - t < chunk ? d - t : chunk; };
  for (index i = 0; i < rows; ++i) out[i] = 0;
  index i = 0;
  for (; d < 2 * chunk && i + 4 <= rows; i += 4) {
    for (index t = 0; t < d; t += chunk) {
      add_squares<T, 4>(x + i * stride + t, stride, piece(t), out + i);
    }
  }
  for (; i < rows; ++i) {
    const T* row = x + i * stride;
    index t = 0;
    for (; t + 2 * chunk <= d; t += 2 * chunk) {
      double both[2] = {};
      add_squares<T, 2>(row + t, chunk, chunk, both);
      out[i] = out[i] + both[0] + both[1];
    }
    for (; t < d; t += chunk) add_squares<T, 1>(row + t, 0, piece(t), out + i);
  }
}

constexpr int kFloatLanes = PYFAST_VECTOR_BYTES / 4;
// All sums of a tile are in registers, of which there are 16, or 32 of 64 bytes.
constexpr int kFloatRows = PYFAST_VECTOR_BYTES == 16 ? 2 : 4;
constexpr int kFloatCols = PYFAST_VECTOR_BYTES == 64 ? 6 : 3;
constexpr index kFloatMany = 6;                // columns; beside more than that, rows are read in
constexpr index kFloatPiece = 256;             // pieces of this length,
constexpr index kFloatRun = 64 * kFloatLanes;  // else of this: a lane sums 64 products

inline float sum_of(Floats v) {
  HalfFloats halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  halves[0] += halves[1];
  float lanes[kFloatLanes / 2];
  __builtin_memcpy(lanes, halves, sizeof lanes);
  for (int half = kFloatLanes / 4; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// Adds one piece of kFloatRows x Cols pairs to their sums, each in Parts registers. Meanwhile the
// pieces that come later are called into the first-level cache.
template <int Cols, int Parts>
inline void float_tile(const float* const* rows, const float* const* later, const float* columns,
                       index column_stride, index length, bool fresh, Floats* totals) {
  constexpr int width = Parts * kFloatLanes;
  Floats sums[kFloatRows][Cols][Parts];
  for (int r = 0; r < kFloatRows; ++r) {
    for (int c = 0; c < Cols; ++c) {
      for (int p = 0; p < Parts; ++p) sums[r][c][p] = Floats{};
    }
  }
  const auto add = [&](const float* const* a, index at, const float* b, index b_stride) {
    for (int p = 0; p < Parts; ++p) {
      Floats right[Cols];
      for (int c = 0; c < Cols; ++c) right[c] = load(b + c * b_stride + p * kFloatLanes, 0.0f);
      for (int r = 0; r < kFloatRows; ++r) {
        const Floats left = held(load(a[r] + at + p * kFloatLanes, 0.0f));
        for (int c = 0; c < Cols; ++c) sums[r][c][p] = quickly_fused(left, right[c], sums[r][c][p]);
      }
    }
  };
  index t = 0;
  for (; t + width <= length; t += width) {
    if (later != nullptr && t % 16 == 0) {
      for (int r = 0; r < kFloatRows; ++r) __builtin_prefetch(later[r] + t, 0, 3);
    }
    add(rows, t, columns + t, column_stride);
  }
  if (t < length) {
    float a_end[kFloatRows * width], b_end[Cols * width];
    const float *ends[kFloatRows], *column[Cols];
    for (int r = 0; r < kFloatRows; ++r) ends[r] = a_end + r * width;
    for (int c = 0; c < Cols; ++c) column[c] = columns + c * column_stride;
    pad(rows, t, kFloatRows, length - t, width, a_end);
    pad(column, t, Cols, length - t, width, b_end);
    add(ends, 0, b_end, width);
  }
  for (int r = 0; r < kFloatRows; ++r) {
    for (int c = 0; c < Cols; ++c) {
      Floats sum = sums[r][c][0];
      for (int p = 1; p < Parts; ++p) sum += sums[r][c][p];
      Floats& total = totals[r * kFloatDotsColumns + c];
      total = fresh ? sum : total + sum;
    }
  }
}

// A piece of one tile's rows beside all columns, up to Cols at once.
template <int Cols>
inline void float_strip(const float* const* rows, const float* const* later, const float* columns,
                        index n_columns, index column_stride, index length, bool fresh,
                        Floats* totals) {
  for (; n_columns >= Cols; n_columns -= Cols) {
    float_tile<Cols, Cols == 1 ? 2 : 1>(rows, later, columns, column_stride, length, fresh, totals);
    columns += Cols * column_stride;
    totals += Cols;
    later = nullptr;  // called already
  }
  if constexpr (Cols > 1) {
    float_strip<Cols - 1>(rows, later, columns, n_columns, column_stride, length, fresh, totals);
  }
}

void float_dots(const float* const* rows, index n_rows, const float* columns, index n_columns,
                index column_stride, index d, float* out, index out_stride) {
  const index size = n_columns > kFloatMany ? kFloatPiece : kFloatRun;
  const float* padded[kFloatDotsRows + kFloatRows];  // the last one again, to fill the last tile
  for (index i = 0; i < n_rows + kFloatRows; ++i) padded[i] = rows[i < n_rows ? i : n_rows - 1];
  Floats totals[kFloatDotsRows * kFloatDotsColumns];
  // A piece of all rows before the next, so that the columns' stays in the first-level cache.
  for (index from = 0; from == 0 || from < d; from += size) {
    for (index tile = 0; tile < n_rows; tile += kFloatRows) {
      const bool last = tile + kFloatRows >= n_rows;
      const float* const* next = padded + (last ? 0 : tile + kFloatRows);
      const index next_from = last ? from + size : from;
      const float *here[kFloatRows], *later[kFloatRows];
      for (int r = 0; r < kFloatRows; ++r) {
        here[r] = padded[tile + r] + from;
        later[r] = next_from < d ? next[r] + next_from : nullptr;
      }
      float_strip<kFloatCols>(here, next_from < d ? later : nullptr, columns + from, n_columns,
                              column_stride, d - from < size ? d - from : size, from == 0,
                              totals + tile * kFloatDotsColumns);
    }
  }
  for (index i = 0; i < n_rows; ++i) {
    for (index j = 0; j < n_columns; ++j) {
      out[i * out_stride + j] = sum_of(totals[i * kFloatDotsColumns + j]);
    }
  }
}
