// The kernels of k-medoids on many points. A part of kernels.hpp, which includes it where it
// stands: inside the unnamed namespace of one instruction set, so it has no includes of its own.

template <class T>
void encode(const T* d, const T* scales, index count, unsigned char* codes) {
  for (index i = 0; i < count; ++i) {
    const T x = d[i] * scales[i];
    const T low = x > 0 ? x : T{0};  // NaN too
    codes[i] = static_cast<unsigned char>(static_cast<std::int32_t>(low < 255 ? low : T{255}));
  }
}

// Bit c is set if codes[c] <= limits[c], for 64 codes.
inline unsigned long long within_bits(const unsigned char* codes, const unsigned char* limits) {
  unsigned long long bits = 0;
#if defined(__AVX512BW__)
  bits = _mm512_cmple_epu8_mask(_mm512_loadu_si512(codes), _mm512_loadu_si512(limits));
#elif defined(__AVX2__)
  for (int at = 0; at < 64; at += 32) {
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + at));
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limits + at));
    const __m256i low = _mm256_cmpeq_epi8(_mm256_min_epu8(c, l), c);
    bits |= static_cast<unsigned long long>(static_cast<unsigned>(_mm256_movemask_epi8(low))) << at;
  }
#elif defined(__SSE2__)
  for (int at = 0; at < 64; at += 16) {
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + at));
    const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(limits + at));
    const __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(c, l), c);
    bits |= static_cast<unsigned long long>(static_cast<unsigned>(_mm_movemask_epi8(low))) << at;
  }
#else
  for (int c = 0; c < 64; ++c) bits |= (codes[c] <= limits[c] ? 1ull : 0ull) << c;
#endif
  return bits;
}

// Few bits are set, and which ones cannot be foreseen: writing four places whether or not there are
// so many costs less than branches that go the wrong way.
index within(const unsigned char* codes, const unsigned char* limits, index count,
             std::int32_t* places) {
  constexpr unsigned long long kTop = 1ull << 63;  // keeps ctz defined, changes no lowest bit
  index found = 0, i = 0;
  for (; i + 64 <= count; i += 64) {
    unsigned long long bits = within_bits(codes + i, limits + i);
    const int here = __builtin_popcountll(bits);
    std::int32_t* to = places + found;
    for (int b = 0; b < 4; ++b, bits &= bits - 1) {
      to[b] = static_cast<std::int32_t>(i) + __builtin_ctzll(bits | kTop);
    }
    for (int b = 4; b < here; ++b, bits &= bits - 1) {
      to[b] = static_cast<std::int32_t>(i) + __builtin_ctzll(bits);
    }
    found += here;
  }
  for (; i < count; ++i) {
    if (codes[i] <= limits[i]) places[found++] = static_cast<std::int32_t>(i);
  }
  return found;
}

// x and y, whose difference is too large, or that are negative, or not finite. What is close here
// is close in exact arithmetic: there is room for rounding.
template <class T>
inline auto far_apart(typename VectorOf<T>::type x, typename VectorOf<T>::type y) {
  constexpr T kRelative = T(0.99999e-5), kAbsolute = T(0.99999e-8);
  constexpr T kLargest = sizeof(T) == sizeof(float) ? T(3.4e38) : T(1.7e308);
  const auto difference = x > y ? x - y : y - x;
  const auto fine = (difference <= kRelative * y + kAbsolute) & (x >= 0) & (y >= 0) &
                    (x <= kLargest) & (y <= kLargest);
  return ~fine;
}

// Tile by tile, each turned first. The next one is asked for ahead of time, because no hardware
// foresees the way down a column.
template <class T>
bool mirrored(const T* d, index n, index top) {
  typedef typename VectorOf<T>::type Vector;
  constexpr index kTile = 64, kWidth = Lanes<T>::per_part, kLine = 64 / sizeof(T);
  const index bottom = top + kTile < n ? top + kTile : n;
  auto bad = Vector{} < Vector{};  // none
  for (index left = top; left < n; left += kTile) {
    const index count = n - left < kTile ? n - left : kTile;
    for (index i = top; i < bottom; ++i) {
      const index row = left + kTile + i - top;
      for (index t = 0; t < kTile; t += kLine) {
        if (left + kTile + t < n) __builtin_prefetch(d + i * n + left + kTile + t);
        if (row < n) __builtin_prefetch(d + row * n + top + t);
      }
      T here[kTile] = {}, turned[kTile] = {};
      const T* from = d + i * n + left;
      if (count < kTile) {
        for (index j = 0; j < count; ++j) here[j] = from[j];
        from = here;
      }
      for (index j = 0; j < count; ++j) turned[j] = d[(left + j) * n + i];
      for (index j = 0; j < kTile; j += kWidth) {
        bad |= far_apart<T>(load(from + j, T{}), load(turned + j, T{}));
      }
    }
  }
  for (index c = 0; c < kWidth; ++c) {
    if (bad[c] != 0) return false;
  }
  return true;
}
