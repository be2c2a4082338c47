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

// Several rows at once: the additions of one wait for each other.
template <class T, int Rows>
inline void squares(const T* x, index stride, index d, double* out) {
  constexpr index chunk = kChunkBytes / 8;
  constexpr int width = Lanes<double>::count, per_part = Lanes<double>::per_part;
  for (index start = 0; start == 0 || start < d; start += chunk) {
    const index end = d - start < chunk ? d : start + chunk;
    Lanes<double> sums[Rows];
    for (int r = 0; r < Rows; ++r) {
      for (int p = 0; p < kParts; ++p) sums[r].part[p] = Doubles{};
    }
    const auto add = [&](const T* from, index apart) {
      for (int p = 0; p < kParts; ++p) {
        for (int r = 0; r < Rows; ++r) {
          const Doubles v = held(load(from + r * apart + p * per_part, 0.0));
          sums[r].part[p] = add_square(v, sums[r].part[p], T{});
        }
      }
    };
    index t = start;
    for (; t + width <= end; t += width) add(x + t, stride);
    if (t < end) {
      T rest[Rows * width];
      const T* rows[Rows];
      for (int r = 0; r < Rows; ++r) rows[r] = x + r * stride;
      pad(rows, t, Rows, end - t, width, rest);
      add(rest, width);
    }
    for (int r = 0; r < Rows; ++r) {
      const double sum = tree(fold(sums[r]));
      out[r] = start == 0 ? sum : out[r] + sum;
    }
  }
}

template <class T>
void squared_norms(const T* x, index rows, index stride, index d, double* out) {
  index i = 0;
  for (; i + 4 <= rows; i += 4) squares<T, 4>(x + i * stride, stride, d, out + i);
  for (; i < rows; ++i) squares<T, 1>(x + i * stride, stride, d, out + i);
}

constexpr int kFloatLanes = PYFAST_VECTOR_BYTES / 4;
constexpr int kFloatRows = PYFAST_VECTOR_BYTES == 16 ? 2 : 4;  // all sums of a tile in registers
constexpr int kFloatCols = 3;
constexpr index kFloatPiece = 256;             // of a row beside many columns
constexpr index kFloatRun = 64 * kFloatLanes;  // of a row beside few; a lane sums 64 products

inline float sum_of(Floats v) {
  float lanes[kFloatLanes];
  store(lanes, v);
  for (int half = kFloatLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// Adds one piece of kFloatRows x Cols pairs to their sums, each in Parts registers. Meanwhile the
// pieces that come later are called towards the core.
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
      for (int r = 0; r < kFloatRows; ++r) __builtin_prefetch(later[r] + t, 0, 2);
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

// A piece of one tile's rows beside all columns.
inline void float_strip(const float* const* rows, const float* const* later, const float* columns,
                        index n_columns, index column_stride, index length, bool fresh,
                        Floats* totals) {
  for (; n_columns >= kFloatCols; n_columns -= kFloatCols) {
    float_tile<kFloatCols, 1>(rows, later, columns, column_stride, length, fresh, totals);
    columns += kFloatCols * column_stride;
    totals += kFloatCols;
    later = nullptr;  // called already
  }
  if (n_columns == 2) {
    float_tile<2, 1>(rows, later, columns, column_stride, length, fresh, totals);
  } else if (n_columns == 1) {
    float_tile<1, 2>(rows, later, columns, column_stride, length, fresh, totals);
  }
}

// A piece of a tile of rows, and which comes after it: the tile's next piece if columns are few;
// if not, the next tile's, so that a piece of all columns stays in the first-level cache.
struct FloatPlace {
  index tile, piece;
  void step(bool few, index tiles, index pieces) {
    if (few) {
      if (++piece == pieces) piece = 0, ++tile;
    } else {
      if (++tile == tiles) tile = 0, ++piece;
    }
  }
};

void float_dots(const float* const* rows, index n_rows, const float* columns, index n_columns,
                index column_stride, index d, float* out, index out_stride) {
  const bool few = n_columns <= kFloatCols, many = n_columns > 2 * kFloatCols;
  const index size = many ? kFloatPiece : kFloatRun;
  const index pieces = d <= size ? 1 : (d + size - 1) / size;
  const index tiles = (n_rows + kFloatRows - 1) / kFloatRows;
  const float* padded[kFloatDotsRows];  // the last row again and again to fill the last tile
  for (index i = 0; i < tiles * kFloatRows; ++i) padded[i] = rows[i < n_rows ? i : n_rows - 1];
  Floats totals[kFloatDotsRows * kFloatDotsColumns];
  FloatPlace now{0, 0}, then{0, 0};
  then.step(few, tiles, pieces);
  for (index s = 0; s < tiles * pieces; ++s) {
    const float *here[kFloatRows], *later[kFloatRows];
    const bool more = many && s + 1 < tiles * pieces;  // if not, the hardware does better alone
    const index from = now.piece * size;
    for (int r = 0; r < kFloatRows; ++r) {
      here[r] = padded[now.tile * kFloatRows + r] + from;
      later[r] = more ? padded[then.tile * kFloatRows + r] + then.piece * size : nullptr;
    }
    float_strip(here, more ? later : nullptr, columns + from, n_columns, column_stride,
                d - from < size ? d - from : size, from == 0,
                totals + now.tile * kFloatRows * kFloatDotsColumns);
    now.step(few, tiles, pieces);
    then.step(few, tiles, pieces);
  }
  for (index i = 0; i < n_rows; ++i) {
    for (index j = 0; j < n_columns; ++j) {
      out[i * out_stride + j] = sum_of(totals[i * kFloatDotsColumns + j]);
    }
  }
}
