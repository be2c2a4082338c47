// Inner products beside panels of kPanelWidth columns whose numbers lie across each other: a
// register holds those of several columns, and no sum goes across its lanes. Part of kernels.hpp.

constexpr int kPanelRows = PYFAST_VECTOR_BYTES == 16 ? 2 : PYFAST_VECTOR_BYTES == 32 ? 6 : 12;
constexpr int kPanelVectors = static_cast<int>(kPanelWidth) * 4 / PYFAST_VECTOR_BYTES;
constexpr int kPanelsTogether = PYFAST_VECTOR_BYTES == 64 ? 2 : 1;
constexpr index kPanelPiece = 256;  // of a row: the panels' stays in the first-level cache

// Of at most Rows rows: together, because one row's sums wait for each other.
template <int Rows, int Panels>
inline void panel_tile(const float* a, index rows, index a_stride, const float* panel, index apart,
                       index length, bool fresh, float* out, index out_stride) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      return panel_tile<Rows - 1, Panels>(a, rows, a_stride, panel, apart, length, fresh, out,
                                          out_stride);
    }
  }
  constexpr int lanes = PYFAST_VECTOR_BYTES / 4, vectors = Panels * kPanelVectors;
  Floats sums[Rows][vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < vectors; ++v) sums[r][v] = Floats{};
  }
  for (index t = 0; t < length; ++t) {
    Floats right[vectors];
    for (int v = 0; v < vectors; ++v) {
      const float* of = panel + v / kPanelVectors * apart + v % kPanelVectors * lanes;
      right[v] = load(of + t * kPanelWidth, 0.0f);
    }
#pragma GCC unroll 16  // GCC 12 keeps the sums of 3 to 5 rows in memory without it
    for (int r = 0; r < Rows; ++r) {
      Floats left = a[r * a_stride + t] - Floats{};
      if (vectors > 1) left = held(left);
      for (int v = 0; v < vectors; ++v) sums[r][v] = quickly_fused(left, right[v], sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      float* to = out + r * out_stride + v * lanes;
      store(to, fresh ? sums[r][v] : load(to, 0.0f) + sums[r][v]);
    }
  }
}

void panel_dots(const float* a, index rows, index a_stride, const float* panels, index count,
                index apart, index d, float* out, index out_stride) {
  const index tiles = (rows + kPanelRows - 1) / kPanelRows, each = (rows + tiles - 1) / tiles;
  for (index t = 0; t == 0 || t < d; t += kPanelPiece) {
    const index length = d - t < kPanelPiece ? d - t : kPanelPiece;
    for (index p = 0; p < count; p += kPanelsTogether) {
      const float* piece = panels + p * apart + t * kPanelWidth;
      for (index i = 0; i < rows; i += each) {
        const index now = rows - i < each ? rows - i : each;
        const float* left = a + i * a_stride + t;
        float* to = out + i * out_stride + p * kPanelWidth;
        if (count - p >= kPanelsTogether) {
          panel_tile<kPanelRows, kPanelsTogether>(left, now, a_stride, piece, apart, length, t == 0,
                                                  to, out_stride);
        } else {
          panel_tile<kPanelRows, 1>(left, now, a_stride, piece, apart, length, t == 0, to,
                                    out_stride);
        }
      }
    }
  }
}

void to_panel(const float* rows, index stride, index d, float* panel) {
  for (index t = 0; t < d; t += 4) {
    for (index c = 0; c < kPanelWidth; c += 4) {
      turn4(rows + c * stride + t, stride, panel + t * kPanelWidth + c, kPanelWidth);
    }
  }
}

// Rows of one panel beside the columns of one or two others: all read in order from one place each,
// which leaves registers for the sums. A piece of all of them stays in the first-level cache while
// the rows pass by, a few at a time. tile[r * Panels * kPanelWidth + c].
constexpr int kPairRows = PYFAST_VECTOR_BYTES == 64 ? 16 : PYFAST_VECTOR_BYTES == 32 ? 4 : 2;
constexpr index kPairSum = 32;  // numbers that are added up before they join the others

template <int Panels>
inline void panel_pair(const float* a, const float* b, index d, float* tile) {
  constexpr int lanes = PYFAST_VECTOR_BYTES / 4, rows = kPairRows / Panels;
  constexpr int vectors = Panels * kPanelVectors;
  for (index begin = 0; begin < d; begin += kPairSum) {
    const index end = begin + kPairSum < d ? begin + kPairSum : d;
    for (index first = 0; first < kPanelWidth; first += rows) {
      Floats sums[rows][vectors];
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) sums[r][v] = held(Floats{});
      }
      for (index t = begin; t < end; ++t) {
        Floats right[vectors];
        for (int v = 0; v < vectors; ++v) {
          right[v] = load(
              b + ((v / kPanelVectors) * d + t) * kPanelWidth + v % kPanelVectors * lanes, 0.0f);
        }
        if (first == 0) {  // the next piece
          __builtin_prefetch(a + (t + kPairSum) * kPanelWidth);
          for (index p = 0; p < Panels; ++p) {
            __builtin_prefetch(b + (p * d + t + kPairSum) * kPanelWidth);
          }
        }
        for (int r = 0; r < rows; ++r) {
          Floats left = a[t * kPanelWidth + first + r] - Floats{};
          if (Panels > 1) left = held(left);
          for (int v = 0; v < vectors; ++v) sums[r][v] = fused(left, right[v], sums[r][v]);
        }
      }
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
          float* to = tile + (first + r) * Panels * kPanelWidth + v * lanes;
          store(to, begin == 0 ? sums[r][v] : load(to, 0.0f) + sums[r][v]);
        }
      }
    }
  }
}

template <int Panels>
inline index pair_distances(const PanelPair& in) {
  constexpr int lanes = PYFAST_VECTOR_BYTES / 4, vectors = Panels * kPanelVectors;
  constexpr index width = Panels * kPanelWidth;
  float tile[kPanelWidth * width];
  panel_pair<Panels>(in.a, in.b, in.d, tile);
  auto close = Floats{} != Floats{};  // none
  Floats largest[vectors];
  for (int v = 0; v < vectors; ++v) largest[v] = load(in.largest + v * lanes, 0.0f);
  for (index r = 0; r < in.rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      float* const at = tile + r * width + v * lanes;
      const Floats dot = load(at, 0.0f);
      const Floats both = in.a_norms[r] + load(in.b_norms + v * lanes, 0.0f);
      const Floats square = both - (dot + dot);
      const auto apart = in.apart * square >= both;
      close += ~apart;
      const Floats length = apart ? root(square) : Floats{} - 1.0f;
      largest[v] = length > largest[v] ? length : largest[v];
      store(at, length);
      store(in.out + r * in.stride + v * lanes, length);
    }
  }
  for (int v = 0; v < vectors; ++v) store(in.largest + v * lanes, largest[v]);
  for (index r = 0; r < in.rows; r += 4) {
    for (index c = 0; c < in.columns; c += 4) {
      if (r + 4 <= in.rows && c + 4 <= in.columns) {
        turn4(tile + r * width + c, width, in.mirrored + c * in.stride + r, in.stride);
        continue;
      }
      for (index i = r; i < r + 4 && i < in.rows; ++i) {
        for (index j = c; j < c + 4 && j < in.columns; ++j) {
          in.mirrored[j * in.stride + i] = tile[i * width + j];
        }
      }
    }
  }
  index count = 0;
  for (int l = 0; l < lanes; ++l) count -= close[l];
  return count;
}

index panel_distances(const PanelPair& in) {
  return in.panels == 2 ? pair_distances<2>(in) : pair_distances<1>(in);
}
