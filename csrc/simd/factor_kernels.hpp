// Cholesky factors of a few hundred rows. A part of kernels.hpp, which includes it where it stands:
// inside the unnamed namespace of one instruction set, so it has no includes of its own. All loops
// go number by number: however many a register holds, the bits are the same.

// high + low += w w^T above the diagonal, exactly but for what is below the digits of both: a
// product of two doubles is the sum of two doubles (Dekker 1971), and so is a sum of two (Knuth).
void add_square(const double* w, index d, double* high, double* low) {
  constexpr double kSplit = 0x1.0p27 + 1;
  for (index i = 0; i < d; ++i) {
    const double a = w[i], wide = kSplit * a, a_high = wide - (wide - a), a_low = a - a_high;
    double* __restrict sums = high + i * d;
    double* __restrict rests = low + i * d;
    for (index j = i; j < d; ++j) {
      const double b = w[j], product = a * b, widened = kSplit * b;
      const double b_high = widened - (widened - b), b_low = b - b_high;
      const double rest =
          ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
      const double before = sums[j], sum = before + product, added = sum - before;
      rests[j] += ((before - (sum - added)) + (product - added)) + rest;
      sums[j] = sum;
    }
  }
}

// to[j] -= entries[0] rows[0][j] + .. in that order, for begin <= j < end: four rows at a time, so
// that what is subtracted from stays in registers.
inline void subtract_rows(const double* rows, index stride, const double* entries,
                          index entry_stride, index count, index begin, index end,
                          double* __restrict to) {
  index s = 0;
  for (; s + 4 <= count; s += 4) {
    const double* __restrict a = rows + s * stride;
    const double* __restrict b = a + stride;
    const double* __restrict c = b + stride;
    const double* __restrict e = c + stride;
    const double of_a = entries[s * entry_stride], of_b = entries[(s + 1) * entry_stride];
    const double of_c = entries[(s + 2) * entry_stride], of_e = entries[(s + 3) * entry_stride];
    for (index j = begin; j < end; ++j) {
      to[j] = (((to[j] - of_a * a[j]) - of_b * b[j]) - of_c * c[j]) - of_e * e[j];
    }
  }
  for (; s < count; ++s) {
    const double* __restrict a = rows + s * stride;
    const double of_a = entries[s * entry_stride];
    for (index j = begin; j < end; ++j) to[j] -= of_a * a[j];
  }
}

// A = L L^T, given above the diagonal; L takes its place below the diagonal, L^T above it. Row by
// row: all rows before it are taken off at once.
void factorise(double* a, index d) {
  for (index i = 0; i < d; ++i) {
    double* row = a + i * d;
    subtract_rows(a, d, a + i, d, i, i, d, row);
    const double pivot = __builtin_sqrt(row[i]), inverse = 1 / pivot;
    row[i] = pivot;
    for (index j = i + 1; j < d; ++j) row[j] *= inverse;
    for (index s = 0; s < i; ++s) row[s] = a[s * d + i];
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
  for (index i = 0; i < d; ++i) {
    double* to = inverse + i * d;
    for (index j = 0; j < d; ++j) to[j] = 0;
    const double* row = factor + i * d;
    subtract_rows(inverse, d, row, 1, i, 0, i, to);
    const double pivot = 1 / row[i];
    for (index j = 0; j < i; ++j) to[j] *= pivot;
    to[i] = pivot;
  }
}
