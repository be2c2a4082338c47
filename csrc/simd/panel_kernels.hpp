// Inner products beside a panel of kPanelWidth columns whose numbers lie across each other: a
// register holds those of several columns, and no sum goes across its lanes. Part of kernels.hpp.

constexpr int kPanelRows = PYFAST_VECTOR_BYTES == 16 ? 2 : PYFAST_VECTOR_BYTES == 32 ? 6 : 12;
constexpr int kPanelVectors = static_cast<int>(kPanelWidth) * 4 / PYFAST_VECTOR_BYTES;
constexpr index kPanelPiece = 256;  // of a row: the panel's stays in the first-level cache

// Of at most Rows rows: together, because one row's sums wait for each other.
template <int Rows>
inline void panel_tile(const float* a, index rows, index a_stride, const float* panel, index length,
                       bool fresh, float* out, index out_stride) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      return panel_tile<Rows - 1>(a, rows, a_stride, panel, length, fresh, out, out_stride);
    }
  }
  constexpr int lanes = PYFAST_VECTOR_BYTES / 4;
  Floats sums[Rows][kPanelVectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = Floats{};
  }
  for (index t = 0; t < length; ++t) {
    Floats right[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      right[v] = load(panel + t * kPanelWidth + v * lanes, 0.0f);
    }
    for (int r = 0; r < Rows; ++r) {
      const Floats left = a[r * a_stride + t] - Floats{};
      for (int v = 0; v < kPanelVectors; ++v)
        sums[r][v] = quickly_fused(left, right[v], sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) {
      float* to = out + r * out_stride + v * lanes;
      store(to, fresh ? sums[r][v] : load(to, 0.0f) + sums[r][v]);
    }
  }
}

void panel_dots(const float* a, index rows, index a_stride, const float* panel, index d, float* out,
                index out_stride) {
  for (index t = 0; t == 0 || t < d; t += kPanelPiece) {
    const index length = d - t < kPanelPiece ? d - t : kPanelPiece;
    const float* piece = panel + t * kPanelWidth;
    for (index i = 0; i < rows; i += kPanelRows) {
      panel_tile<kPanelRows>(a + i * a_stride + t, rows - i, a_stride, piece, length, t == 0,
                             out + i * out_stride, out_stride);
    }
  }
}

// Rows of one panel beside the columns of another: both read in order from one place each, which
// leaves registers for the sums. tile[r * kPanelWidth + c] for Rows rows from the first on.
constexpr int kPairRows = PYFAST_VECTOR_BYTES == 64 ? 16 : PYFAST_VECTOR_BYTES == 32 ? 4 : 2;
constexpr index kPairSum = 32;  // numbers that are added up before they join the others

inline void panel_pair(const float* a, const float* b, index d, float* tile) {
  constexpr int lanes = PYFAST_VECTOR_BYTES / 4;
  for (index begin = 0; begin < d; begin += kPairSum) {
    const index end = begin + kPairSum < d ? begin + kPairSum : d;
    Floats sums[kPairRows][kPanelVectors];
    for (int r = 0; r < kPairRows; ++r) {
      for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = held(Floats{});
    }
    for (index t = begin; t < end; ++t) {
      Floats right[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) {
        right[v] = load(b + t * kPanelWidth + v * lanes, 0.0f);
      }
      for (int r = 0; r < kPairRows; ++r) {
        const Floats left = a[t * kPanelWidth + r] - Floats{};
        for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = fused(left, right[v], sums[r][v]);
      }
    }
    for (int r = 0; r < kPairRows; ++r) {
      for (int v = 0; v < kPanelVectors; ++v) {
        float* to = tile + r * kPanelWidth + v * lanes;
        store(to, begin == 0 ? sums[r][v] : load(to, 0.0f) + sums[r][v]);
      }
    }
  }
}

index panel_squares(const PanelSquares& in) {
  constexpr int lanes = PYFAST_VECTOR_BYTES / 4;
  float tile[kPanelWidth * kPanelWidth];
  for (index r = 0; r < kPanelWidth; r += kPairRows) {
    panel_pair(in.a + r, in.b, in.d, tile + r * kPanelWidth);
  }
  auto close = Floats{} != Floats{};  // none
  for (index r = 0; r < in.rows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) {
      float* const at = tile + r * kPanelWidth + v * lanes;
      const Floats dot = load(at, 0.0f);
      const Floats both = in.a_norms[r] + load(in.b_norms + v * lanes, 0.0f);
      const Floats square = both - (dot + dot);
      const auto apart = in.apart * square >= both;
      close += ~apart;
      store(at, apart ? square : Floats{} - 1.0f);
      store(in.out + r * in.stride + v * lanes, load(at, 0.0f));
    }
  }
  for (index r = 0; r < in.rows; r += 4) {
    for (index c = 0; c < in.columns; c += 4) {
      if (r + 4 <= in.rows && c + 4 <= in.columns) {
        turn4(tile + r * kPanelWidth + c, kPanelWidth, in.mirrored + c * in.stride + r, in.stride);
        continue;
      }
      for (index i = r; i < r + 4 && i < in.rows; ++i) {
        for (index j = c; j < c + 4 && j < in.columns; ++j) {
          in.mirrored[j * in.stride + i] = tile[i * kPanelWidth + j];
        }
      }
    }
  }
  index count = 0;
  for (int l = 0; l < lanes; ++l) count -= close[l];
  return count;
}
