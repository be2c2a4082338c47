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
constexpr int kFloatRows = PYFAST_VECTOR_BYTES == 16 ? 2 : 4;  // all sums of a tile in registers
constexpr int kFloatCols = PYFAST_VECTOR_BYTES == 64 ? 6 : 3;
constexpr index kFewColumns = 3;    // whose rows are read to the end, one tile after another
constexpr index kFloatPiece = 256;  // of a row beside many columns
constexpr index kFloatRun = 64 * kFloatLanes;  // of a row beside few; a lane sums 64 products

inline float sum_of(Floats v) {
  float lanes[kFloatLanes];
  store(lanes, v);
  for (int half = kFloatLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// How many numbers before this one the register begins that it would be in.
inline index past_boundary(const float* at) {
  return static_cast<index>(reinterpret_cast<std::uintptr_t>(at) / sizeof(float) % kFloatLanes);
}

// The numbers of a register from `from` to `to`, and zeros.
inline Floats between(Floats v, index from, index to) {
  typedef std::int32_t Places __attribute__((vector_size(PYFAST_VECTOR_BYTES)));
  Places place;
  for (int l = 0; l < kFloatLanes; ++l) place[l] = l;
  const Places low = static_cast<std::int32_t>(from) - Places{};
  const Places high = static_cast<std::int32_t>(to) - Places{};
  return ((place >= low) & (place < high)) ? v : Floats{};
}

// Adds one piece of kFloatRows x Cols pairs to their sums, each in Parts registers. The first row
// is read from a register's boundary on, and so are the others where they lie as it does: a
// register that meets two lines takes twice as long. Meanwhile the pieces that come later are
// called towards the core.
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
  const auto add = [&](const float* const* a, index at, const float* b, index b_stride, int p,
                       index from = 0, index to = kFloatLanes) {
    Floats right[Cols];
    for (int c = 0; c < Cols; ++c) {
      right[c] = load(b + c * b_stride + at, 0.0f);
      if (from > 0 || to < kFloatLanes) right[c] = between(right[c], from, to);
    }
    for (int r = 0; r < kFloatRows; ++r) {
      const Floats left = held(load(a[r] + at, 0.0f));
      for (int c = 0; c < Cols; ++c) sums[r][c][p] = quickly_fused(left, right[c], sums[r][c][p]);
    }
  };
  if (length < kFloatLanes) {
    float a_end[kFloatRows * kFloatLanes], b_end[Cols * kFloatLanes];
    const float *ends[kFloatRows], *column[Cols];
    for (int r = 0; r < kFloatRows; ++r) ends[r] = a_end + r * kFloatLanes;
    for (int c = 0; c < Cols; ++c) column[c] = columns + c * column_stride;
    pad(rows, 0, kFloatRows, length, kFloatLanes, a_end);
    pad(column, 0, Cols, length, kFloatLanes, b_end);
    add(ends, 0, b_end, kFloatLanes, 0);
  } else {
    const index past = past_boundary(rows[0]), head = past == 0 ? 0 : kFloatLanes - past;
    if (head > 0) add(rows, 0, columns, column_stride, 0, 0, head);
    index t = head;
    for (; t + width <= length; t += width) {
      if (later != nullptr && (t - head) % 16 == 0) {
        for (int r = 0; r < kFloatRows; ++r) __builtin_prefetch(later[r] + t, 0, 2);
      }
      for (int p = 0; p < Parts; ++p) add(rows, t + p * kFloatLanes, columns, column_stride, p);
    }
    for (; t + kFloatLanes <= length; t += kFloatLanes) add(rows, t, columns, column_stride, 0);
    const index end = length - kFloatLanes;
    if (t < length) add(rows, end, columns, column_stride, 0, t - end);
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

// A piece of one tile's rows beside at most Cols columns.
template <int Cols>
inline void float_columns(const float* const* rows, const float* const* later, const float* columns,
                          index n_columns, index column_stride, index length, bool fresh,
                          Floats* totals) {
  if constexpr (Cols > 1) {
    if (n_columns < Cols) {
      return float_columns<Cols - 1>(rows, later, columns, n_columns, column_stride, length, fresh,
                                     totals);
    }
  }
  float_tile<Cols, Cols == 1 ? 2 : 1>(rows, later, columns, column_stride, length, fresh, totals);
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
  const bool few = n_columns <= kFewColumns, many = n_columns > 2 * kFewColumns;
  const index size = many ? kFloatPiece : kFloatRun;
  const index past = d < kFloatLanes ? 0 : past_boundary(rows[0]);
  const index pieces = d + past <= size ? 1 : (d + past + size - 1) / size;
  const auto begin = [&](index piece) {
    const index at = piece * size - past;
    return at < 0 ? 0 : at < d ? at : d;
  };
  const index tiles = (n_rows + kFloatRows - 1) / kFloatRows;
  const float* padded[kFloatDotsRows];  // the last row again and again to fill the last tile
  for (index i = 0; i < tiles * kFloatRows; ++i) padded[i] = rows[i < n_rows ? i : n_rows - 1];
  Floats totals[kFloatDotsRows * kFloatDotsColumns];
  FloatPlace now{0, 0}, then{0, 0};
  then.step(few, tiles, pieces);
  for (index s = 0; s < tiles * pieces; ++s) {
    const float *here[kFloatRows], *later[kFloatRows];
    const bool more = many && s + 1 < tiles * pieces;  // if not, the hardware does better alone
    const index from = begin(now.piece), length = begin(now.piece + 1) - from;
    for (int r = 0; r < kFloatRows; ++r) {
      here[r] = padded[now.tile * kFloatRows + r] + from;
      later[r] = more ? padded[then.tile * kFloatRows + r] + begin(then.piece) : nullptr;
    }
    for (index j = 0; j < n_columns; j += kFloatCols) {
      float_columns<kFloatCols>(
          here, more && j == 0 ? later : nullptr, columns + j * column_stride + from, n_columns - j,
          column_stride, length, from == 0, totals + now.tile * kFloatRows * kFloatDotsColumns + j);
    }
    now.step(few, tiles, pieces);
    then.step(few, tiles, pieces);
  }
  for (index i = 0; i < n_rows; ++i) {
    for (index j = 0; j < n_columns; ++j) {
      out[i * out_stride + j] = sum_of(totals[i * kFloatDotsColumns + j]);
    }
  }
}
