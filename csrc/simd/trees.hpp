// From the partial sums of pairs to their totals: a tree that halves them. A part of kernels.hpp,
// which includes it where it stands: inside the unnamed namespace of one instruction set, so it has
// no includes of its own.

// The first step of the tree: as many partial sums as 32 bytes hold.
template <class Sum>
struct Folded {
  static constexpr int count = Lanes<Sum>::count / 2;
  typedef Sum Vector __attribute__((vector_size(kBytes / 2)));
  Vector sums;
};

template <class Sum>
inline Folded<Sum> fold(const Lanes<Sum>& lanes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return {lanes.part[0] + lanes.part[1]};
#else
  struct Both {
    typename Folded<Sum>::Vector low, high;
  } both;
  __builtin_memcpy(&both, &lanes, sizeof both);
  return {both.low + both.high};
#endif
}

// The other steps, of Folded<Sum>::count pairs at once: together they fill the registers that one
// pair would leave half empty. Each pair's additions are those of the plain version below.
#if defined(__AVX2__)

// The halves of a, added up, then those of b.
inline __m256 quarters(const Folded<float>& a, const Folded<float>& b) {
  return _mm256_add_ps(_mm256_permute2f128_ps(a.sums, b.sums, 0x20),
                       _mm256_permute2f128_ps(a.sums, b.sums, 0x31));
}
inline __m256d quarters(const Folded<double>& a, const Folded<double>& b) {
  return _mm256_add_pd(_mm256_permute2f128_pd(a.sums, b.sums, 0x20),
                       _mm256_permute2f128_pd(a.sums, b.sums, 0x31));
}

inline __m256 eighths(__m256 a, __m256 b) {
  const __m256d low = _mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b));
  const __m256d high = _mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b));
  return _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
}

inline void finish(const Folded<float>* pairs, float* totals) {
  const __m256 a = eighths(quarters(pairs[0], pairs[4]), quarters(pairs[1], pairs[5]));
  const __m256 b = eighths(quarters(pairs[2], pairs[6]), quarters(pairs[3], pairs[7]));
  _mm256_storeu_ps(totals,
                   _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)));
}
inline void finish(const Folded<double>* pairs, double* totals) {
  const __m256d a = quarters(pairs[0], pairs[2]), b = quarters(pairs[1], pairs[3]);
  _mm256_storeu_pd(totals, _mm256_add_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b)));
}

#endif

template <class Sum>
inline Sum tree(const Folded<Sum>& pair) {
  Sum sums[Folded<Sum>::count];
  __builtin_memcpy(sums, &pair, sizeof sums);
  for (int half = Folded<Sum>::count / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
  }
  return sums[0];
}

#if !defined(__AVX2__)

template <class Sum>
inline void finish(const Folded<Sum>* pairs, Sum* totals) {
  for (int i = 0; i < Folded<Sum>::count; ++i) totals[i] = tree(pairs[i]);
}

#endif
