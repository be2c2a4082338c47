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
