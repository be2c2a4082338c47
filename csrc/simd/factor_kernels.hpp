// Cholesky factors of a few hundred rows. A part of kernels.hpp, which includes it where it stands:
// inside the unnamed namespace of one instruction set, so it has no includes of its own. All loops
// go number by number: however many a register holds, the bits are the same.

// high + low += a x, exactly but for what is below the digits of both: a product of two doubles is
// the sum of two doubles (Dekker 1971), and so is a sum of two (Knuth).
void add_scaled(double a, const double* x, index count, double* __restrict high,
                double* __restrict low) {
  constexpr double kSplit = 0x1.0p27 + 1;
  const double widened = kSplit * a, a_high = widened - (widened - a), a_low = a - a_high;
  for (index j = 0; j < count; ++j) {
    const double b = x[j], product = a * b, wide = kSplit * b;
    const double b_high = wide - (wide - b), b_low = b - b_high;
    const double rest =
        ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    const double before = high[j], sum = before + product, added = sum - before;
    low[j] += ((before - (sum - added)) + (product - added)) + rest;
    high[j] = sum;
  }
}

// to[j] -= entries[0] rows[0][j] + .. in that order, for begin <= j < end and the `Targets` rows
// from `to` on, whose entries stand beside each other: four rows at a time, so that what is
// subtracted from stays in registers, and what is subtracted serves all targets.
template <int Targets>
inline void subtract_rows(const double* rows, index stride, const double* entries,
                          index entry_stride, index count, index begin, index end, double* to) {
  constexpr int group = 4;
  for (index s = 0; s < count; s += group) {
    const int together = count - s < group ? static_cast<int>(count - s) : group;
    double of[Targets][group];
    for (int r = 0; r < Targets; ++r) {
      for (int g = 0; g < together; ++g) of[r][g] = entries[(s + g) * entry_stride + r];
    }
    const double* first = rows + s * stride;
    double* __restrict target = to;
    if (together == group) {
      for (index j = begin; j < end; ++j) {
        for (int r = 0; r < Targets; ++r) {
          double left = target[r * stride + j];
          for (int g = 0; g < group; ++g) left -= of[r][g] * first[g * stride + j];
          target[r * stride + j] = left;
        }
      }
    } else {
      for (int g = 0; g < together; ++g) {
        for (int r = 0; r < Targets; ++r) {
          for (index j = begin; j < end; ++j) {
            target[r * stride + j] -= of[r][g] * first[g * stride + j];
          }
        }
      }
    }
  }
}

// A = L L^T, given above the diagonal; L takes its place below the diagonal, L^T above it. Two rows
// at a time: all rows before them are taken off both at once, and then the first off the second.
void factorise(double* a, index d) {
  const auto finish = [&](index i) {
    double* row = a + i * d;
    const double pivot = __builtin_sqrt(row[i]), inverse = 1 / pivot;
    row[i] = pivot;
    for (index j = i + 1; j < d; ++j) row[j] *= inverse;
    for (index s = 0; s < i; ++s) row[s] = a[s * d + i];
  };
  for (index i = 0; i < d; i += 2) {
    double* row = a + i * d;
    if (i + 1 == d) {
      subtract_rows<1>(a, d, a + i, d, i, i, d, row);
      return finish(i);
    }
    subtract_rows<2>(a, d, a + i, d, i, i, d, row);
    finish(i);
    subtract_rows<1>(row, d, row + i + 1, d, 1, i + 1, d, row + d);
    finish(i + 1);
  }
}

// x = L^{-1} x
void forward(const double* factor, index d, double* __restrict x) {
  for (index s = 0; s < d; ++s) {
    const double* row = factor + s * d;
    const double entry = x[s] /= row[s];
    for (index j = s + 1; j < d; ++j) x[j] -= entry * row[j];
  }
}

// x = L^{-T} x, and out = |L^T| |x|.
void backward(const double* factor, index d, double* __restrict x, double* __restrict out) {
  for (index s = 0; s < d; ++s) out[s] = 0;
  for (index s = d - 1; s >= 0; --s) {
    const double* row = factor + s * d;
    const double entry = x[s] /= row[s], size = entry < 0 ? -entry : entry;
    for (index j = 0; j < s; ++j) x[j] -= entry * row[j];
    for (index j = 0; j <= s; ++j) out[j] += size * (row[j] < 0 ? -row[j] : row[j]);
  }
}

// inverse = L^{-1}, with zeros above the diagonal.
void invert(const double* factor, index d, double* inverse) {
  constexpr index group = 16;
  for (index i = 0; i < d; ++i) {
    double* to = inverse + i * d;
    for (index j = 0; j < d; ++j) to[j] = 0;
    const double* row = factor + i * d;
    for (index s = 0; s < i; s += group) {  // of these rows there are zeros beyond the last one's
      const index count = i - s < group ? i - s : group;
      subtract_rows<1>(inverse + s * d, d, row + s, 1, count, 0, s + count, to);
    }
    const double pivot = 1 / row[i];
    for (index j = 0; j < i; ++j) to[j] *= pivot;
    to[i] = pivot;
  }
}
