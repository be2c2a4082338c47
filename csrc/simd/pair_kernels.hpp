// Squared distances of all pairs of some rows, and of some rows to one. A part of kernels.hpp,
// which includes it where it stands: inside the unnamed namespace of one instruction set, so it has
// no includes of its own.

// Columns of a symmetric matrix whose rows pass by together: a multiple of every tile's, and no
// more than stay in the first-level cache beside the rows that meet them.
constexpr index kPanelCols = 12, kPanelRoom = 16, kPanelBytes = 20480;

// The sums of rows i .. i + kTileRows - 1 with columns j .. j + cols - 1, at most Cols of them;
// `rows[r]` takes those of row i + r. Short of a tile's width, a narrower one does no idle work.
template <int Cols, class Sum>
inline void symmetric_tile(const Sum* const* x, index i, index j, index cols, index t, index t_end,
                           Folded<Sum> (*rows)[kPanelRoom], index at) {
  if constexpr (Cols > 1) {
    if (cols < Cols) return symmetric_tile<Cols - 1>(x, i, j, cols, t, t_end, rows, at);
  }
  const Sum* a[kTileRows];
  const Sum* b[Cols];
  for (int r = 0; r < kTileRows; ++r) a[r] = x[i + r];
  for (int c = 0; c < Cols; ++c) b[c] = x[j + c];
  Tile<Sum, kTileRows, Cols> tile;
  clear(tile);
  for (; t < t_end; t += Lanes<Sum>::count) add<SquaredDifference>(tile, a, b, t);
  for (int r = 0; r < kTileRows; ++r) {
    for (int c = 0; c < Cols; ++c) rows[r][at + c] = fold(tile.sums[r * Cols + c]);
  }
}

// Adds the totals of row i with columns first .. end - 1, and mirrors them.
template <class Sum>
inline void finish_row(const Folded<Sum>* pairs, index i, index first, index end, bool fresh,
                       Sum* out, index out_stride) {
  Sum totals[kPanelRoom];
  for (index j = 0; j < end - first; j += Folded<Sum>::count) finish(pairs + j, totals + j);
  Sum* const row = out + i * out_stride;
  for (index j = first; j < end; ++j) {
    row[j] = fresh ? totals[j - first] : row[j] + totals[j - first];
    out[j * out_stride + i] = row[j];
  }
}

template <class Sum>
void pair_squares(const Sum* const* x, index n, index from, index to, index begin, index end,
                  Sum* out, index out_stride, const Ahead& ahead) {
  const char* fetch = static_cast<const char*>(ahead.data);
  const char* const fetch_end = fetch + ahead.bytes;
  const index tiles = (to + from) * (to - from) / (2 * kTileRows * kTileCols) + 1,
              fetch_each = ahead.bytes / tiles + 64;
  constexpr index kChunk = kChunkBytes / static_cast<index>(sizeof(Sum));
  Folded<Sum> rows[kTileRows][kPanelRoom] = {};
  for (index i = from; i < to; ++i) {
    out[i * out_stride + i] = 0;
    for (index j = n; j < out_stride; ++j) out[i * out_stride + j] = 0;
  }
  const index longest = end - begin < kChunk ? end - begin : kChunk;
  const bool whole = kPanelCols * longest * static_cast<index>(sizeof(Sum)) <= kPanelBytes;
  const index cols = whole ? kPanelCols : kPanelCols / 2;
  for (index t = begin; t == begin || t < end; t += kChunk) {
    const index t_end = end - t < kChunk ? end : t + kChunk;
    for (index first = 0; first < to; first += cols) {
      // Rows that do not fill a tile come first, where a row has the fewest columns.
      for (index i = first < from ? from : first + 1, next; i < to; i = next) {
        next = i + (to - i - 1) % kTileRows + 1;
        const index last = first + cols < next - 1 ? first + cols : next - 1;
        for (index j = first; j < last; j += kTileCols) {
          symmetric_tile<kTileCols>(x, i, j, last - j, t, t_end, rows, j - first);
          const char* stop = fetch_end - fetch < fetch_each ? fetch_end : fetch + fetch_each;
          for (; fetch < stop; fetch += 64) __builtin_prefetch(fetch, 0, 2);
        }
        for (index r = 0; i + r < next; ++r) {
          finish_row(rows[r], i + r, first, i + r < last ? i + r : last, t == 0, out, out_stride);
        }
      }
    }
  }
}

template <class Sum, class A>
void squares_to(const A* const* rows, index n, const A* one, index d, Sum* out) {
  constexpr index kChunk = kChunkBytes / static_cast<index>(sizeof(Sum));
  constexpr index kLine = 64 / static_cast<index>(sizeof(A)), kFetched = 512;
  for (index i = 0; i < n; i += kTileRows) {
    // The next rows lie anywhere, and are too short for the hardware to foresee them.
    for (index r = i + kTileRows; r < i + 2 * kTileRows && r < n; ++r) {
      for (index t = 0; t < d && t < kFetched; t += kLine) __builtin_prefetch(rows[r] + t);
    }
    Sum squares[kTileRows];
    for (index t = 0; t == 0 || t < d; t += kChunk) {
      const A* a[kTileRows];
      const A* const b[1] = {one + t};
      for (int r = 0; r < kTileRows; ++r) a[r] = rows[i + r < n ? i + r : n - 1] + t;
      Sum totals[kTileRows];
      sum_pairs<SquaredDifference, Sum, kTileRows, 1>(a, b, d - t < kChunk ? d - t : kChunk,
                                                      totals);
      for (int r = 0; r < kTileRows; ++r) {
        squares[r] = t == 0 ? totals[r] : squares[r] + totals[r];
      }
    }
    for (index r = 0; r < kTileRows && i + r < n; ++r) out[i + r] = squares[r];
  }
}
