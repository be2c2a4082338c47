// Cholesky factors of a few hundred rows. A part of kernels.hpp, which includes it where it stands:
// inside the unnamed namespace of one instruction set, so it has no includes of its own. What is
// taken off a number is taken off in order, product and difference rounded apart: however many a
// register holds, and whichever rows go together, the bits are the same.

// What a product of two doubles lacks of it, which is a double too: by one instruction, or by
// halves (Dekker 1971).
inline double rest_of(double a, double b, double product) {
#if defined(__AVX512F__) || defined(__FMA__)
  return __builtin_fma(a, b, -product);
#else
  constexpr double kSplit = 0x1.0p27 + 1;
  const double wide_a = kSplit * a, a_high = wide_a - (wide_a - a), a_low = a - a_high;
  const double wide_b = kSplit * b, b_high = wide_b - (wide_b - b), b_low = b - b_high;
  return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

// high + low += a x, exactly but for what is below the digits of both: a product of two doubles is
// the sum of two doubles, and so is a sum of two (Knuth).
void add_scaled(double a, const double* x, index count, double* __restrict high,
                double* __restrict low) {
  for (index j = 0; j < count; ++j) {
    const double product = a * x[j], rest = rest_of(a, x[j], product);
    const double before = high[j], sum = before + product, added = sum - before;
    low[j] += ((before - (sum - added)) + (product - added)) + rest;
    high[j] = sum;
  }
}

constexpr index kFactorLanes = PYFAST_VECTOR_BYTES / 8;
// Rows that are changed together, so that what is read serves all of them.
constexpr int kFactorTargets = PYFAST_VECTOR_BYTES == 16 ? 4 : 8;
constexpr int kFactorVectors = PYFAST_VECTOR_BYTES == 32 ? 1 : 2;  // sums stay in registers

// to[r][j] -= entries[r][0] rows[0][j] + .. in that order, for the columns of Vectors registers;
// all rows and entries stand `stride` numbers apart.
template <int Targets, int Vectors>
inline void subtract_tile(const double* rows, index stride, const double* entries, index count,
                          double* to) {
  Doubles left[Targets][Vectors];
  for (int r = 0; r < Targets; ++r) {
    for (int v = 0; v < Vectors; ++v) left[r][v] = load(to + r * stride + v * kFactorLanes, 0.0);
  }
  for (index s = 0; s < count; ++s) {
    Doubles right[Vectors];
    for (int v = 0; v < Vectors; ++v) right[v] = load(rows + s * stride + v * kFactorLanes, 0.0);
    for (int r = 0; r < Targets; ++r) {
      const Doubles entry = entries[r * stride + s] - Doubles{};
      for (int v = 0; v < Vectors; ++v) left[r][v] -= entry * right[v];
    }
  }
  for (int r = 0; r < Targets; ++r) {
    for (int v = 0; v < Vectors; ++v) store(to + r * stride + v * kFactorLanes, left[r][v]);
  }
}

// The same for the columns begin <= j < end.
template <int Targets>
inline void subtract_rows(const double* rows, index stride, const double* entries, index count,
                          index begin, index end, double* to) {
  constexpr int vectors = Targets == 1 ? 4 : kFactorVectors;
  index j = begin;
  for (; (end - j) % kFactorLanes != 0; ++j) {
    double left[Targets];
    for (int r = 0; r < Targets; ++r) left[r] = to[r * stride + j];
    for (index s = 0; s < count; ++s) {
      for (int r = 0; r < Targets; ++r) left[r] -= entries[r * stride + s] * rows[s * stride + j];
    }
    for (int r = 0; r < Targets; ++r) to[r * stride + j] = left[r];
  }
  for (; j + vectors * kFactorLanes <= end; j += vectors * kFactorLanes) {
    subtract_tile<Targets, vectors>(rows + j, stride, entries, count, to + j);
  }
  for (; j < end; j += kFactorLanes) {
    subtract_tile<Targets, 1>(rows + j, stride, entries, count, to + j);
  }
}

// The same for so many rows, kFactorTargets at most.
inline void subtract_rows(const double* rows, index stride, const double* entries, index count,
                          index begin, index end, double* to, index targets) {
  if (targets == kFactorTargets) {
    return subtract_rows<kFactorTargets>(rows, stride, entries, count, begin, end, to);
  }
  for (index r = 0; r < targets; ++r) {
    subtract_rows<1>(rows, stride, entries + r * stride, count, begin, end, to + r * stride);
  }
}

// A = L L^T, given above the diagonal; L takes its place below the diagonal, L^T above it. A few
// rows at a time: all rows before them are taken off at once, and then each off those after it.
void factorise(double* a, index d) {
  for (index i = 0; i < d; i += kFactorTargets) {
    const index together = d - i < kFactorTargets ? d - i : kFactorTargets;
    double* row = a + i * d;
    subtract_rows(a, d, row, i, i, d, row, together);
    for (index r = 0; r < together; ++r) {
      double* to = row + r * d;
      for (index q = 0; q < r; ++q) to[i + q] = row[q * d + i + r];
      subtract_rows<1>(row, d, to + i, r, i + r, d, to);
      const double pivot = __builtin_sqrt(to[i + r]), inverse = 1 / pivot;
      to[i + r] = pivot;
      for (index j = i + r + 1; j < d; ++j) to[j] *= inverse;
    }
    for (index j = i + together; j < d; ++j) {
      for (index r = 0; r < together; ++r) a[j * d + i + r] = row[r * d + j];
    }
  }
}

// Entries of x that are worked out before the others see them, in the same order.
constexpr index kSolved = 8;

// x = L^{-1} x
void forward(const double* factor, index d, double* __restrict x) {
  for (index s = 0; s < d; s += kSolved) {
    const index end = d - s < kSolved ? d : s + kSolved;
    const double* rows = factor + s * d;
    double entries[kSolved];
    for (index r = 0; s + r < end; ++r) {
      const double entry = entries[r] = x[s + r] /= rows[r * d + s + r];
      for (index j = s + r + 1; j < end; ++j) x[j] -= entry * rows[r * d + j];
    }
    for (index j = end; j < d; ++j) {  // all kSolved, if there are any more
      double left = x[j];
      for (index r = 0; r < kSolved; ++r) left -= entries[r] * rows[r * d + j];
      x[j] = left;
    }
  }
}

// x = L^{-T} x, and out = |L^T| |x|.
void backward(const double* factor, index d, double* __restrict x, double* __restrict out) {
  for (index s = 0; s < d; ++s) out[s] = 0;
  for (index end = d, s; end > 0; end = s) {
    s = end < kSolved ? 0 : end - kSolved;
    const double* rows = factor + s * d;
    double entries[kSolved], sizes[kSolved];
    for (index r = end - s - 1; r >= 0; --r) {
      const double entry = entries[r] = x[s + r] /= rows[r * d + s + r];
      sizes[r] = entry < 0 ? -entry : entry;
      for (index j = s; j < s + r; ++j) x[j] -= entry * rows[r * d + j];
      for (index j = s; j <= s + r; ++j) out[j] += sizes[r] * __builtin_fabs(rows[r * d + j]);
    }
    for (index j = 0; j < s; ++j) {  // all kSolved, if there are any before
      double left = x[j], reach = out[j];
      for (index r = kSolved - 1; r >= 0; --r) {
        left -= entries[r] * rows[r * d + j];
        reach += sizes[r] * __builtin_fabs(rows[r * d + j]);
      }
      x[j] = left;
      out[j] = reach;
    }
  }
}

// inverse = L^{-1}, with zeros above the diagonal.
void invert(const double* factor, index d, double* inverse) {
  for (index p = 0; p < d * d; ++p) inverse[p] = 0;
  for (index i = 0; i < d; i += kFactorTargets) {
    const index together = d - i < kFactorTargets ? d - i : kFactorTargets;
    const double* row = factor + i * d;
    double* to = inverse + i * d;
    for (index j = 0; j < i; j += kFactorTargets) {  // in these columns, rows before j are zeros
      subtract_rows(inverse + j * d, d, row + j, i - j, j, j + kFactorTargets, to, together);
    }
    for (index r = 0; r < together; ++r) {
      subtract_rows<1>(to, d, row + r * d + i, r, 0, i + r, to + r * d);
      const double pivot = 1 / row[r * d + i + r];
      for (index j = 0; j < i + r; ++j) to[r * d + j] *= pivot;
      to[r * d + i + r] = pivot;
    }
  }
}
