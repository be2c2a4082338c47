// The kernels of k-medoids on many points. A part of kernels.hpp, which includes it where it
// stands: inside the unnamed namespace of one instruction set, so it has no includes of its own.

template <class T>
void to_bytes(const T* d, const T* scales, index count, unsigned char* bytes) {
  for (index i = 0; i < count; ++i) {
    const T x = d[i] * scales[i];
    const T low = x > 0 ? x : T{0};  // NaN too
    bytes[i] = static_cast<unsigned char>(static_cast<std::int32_t>(low < 255 ? low : T{255}));
  }
}

// Bit c is set if bytes[c] <= limits[c], for 64 of them.
inline unsigned long long within_bits(const unsigned char* bytes, const unsigned char* limits) {
  unsigned long long bits = 0;
#if defined(__AVX512BW__)
  bits = _mm512_cmple_epu8_mask(_mm512_loadu_si512(bytes), _mm512_loadu_si512(limits));
#elif defined(__AVX2__)
  for (int at = 0; at < 64; at += 32) {
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + at));
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limits + at));
    const __m256i low = _mm256_cmpeq_epi8(_mm256_min_epu8(c, l), c);
    bits |= static_cast<unsigned long long>(static_cast<unsigned>(_mm256_movemask_epi8(low))) << at;
  }
#elif defined(__SSE2__)
  for (int at = 0; at < 64; at += 16) {
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + at));
    const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(limits + at));
    const __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(c, l), c);
    bits |= static_cast<unsigned long long>(static_cast<unsigned>(_mm_movemask_epi8(low))) << at;
  }
#else
  for (int c = 0; c < 64; ++c) bits |= (bytes[c] <= limits[c] ? 1ull : 0ull) << c;
#endif
  return bits;
}

// Few bits are set, and which ones cannot be foreseen: writing four places whether or not there are
// so many costs less than branches that go the wrong way.
index within(const unsigned char* bytes, const unsigned char* limits, index count,
             std::int32_t* places) {
  constexpr unsigned long long kTop = 1ull << 63;  // keeps ctz defined, changes no lowest bit
  constexpr index kAhead = 2048;  // bytes; perhaps of the next row, which is looked at next
  index found = 0, i = 0;
  for (; i + 64 <= count; i += 64) {
    __builtin_prefetch(bytes + i + kAhead);
    unsigned long long bits = within_bits(bytes + i, limits + i);
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
    if (bytes[i] <= limits[i]) places[found++] = static_cast<std::int32_t>(i);
  }
  return found;
}

constexpr index kTile = 64;  // of mirrored(); in bytes, a row of it fills a cache line

// to[c * to_stride + r] = from[r * stride + c] for 4 x 4 numbers.
inline void turn4(const float* from, index stride, float* to, index to_stride) {
#if defined(__SSE2__)
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride);
  __m128 c = _mm_loadu_ps(from + 2 * stride), d = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_stride, b);
  _mm_storeu_ps(to + 2 * to_stride, c);
  _mm_storeu_ps(to + 3 * to_stride, d);
#else
  for (index r = 0; r < 4; ++r) {
    for (index c = 0; c < 4; ++c) to[c * to_stride + r] = from[r * stride + c];
  }
#endif
}

// to[i * kTile + j] = from[j * stride + i] for kTile x kTile numbers.
inline void turn(const double* from, index stride, double* to) {
  for (index i = 0; i < kTile; ++i) {
    for (index j = 0; j < kTile; ++j) to[i * kTile + j] = from[j * stride + i];
  }
}
inline void turn(const float* from, index stride, float* to) {
  for (index j = 0; j < kTile; j += 4) {
    for (index i = 0; i < kTile; i += 4) {
      turn4(from + j * stride + i, stride, to + i * kTile + j, kTile);
    }
  }
}

// Whether all numbers of x are >= 0, and close to those of y, which are finite and >= 0. What is
// close here is close in exact arithmetic: there is room for rounding.
template <class T>
inline auto mirrors(typename VectorOf<T>::type x, typename VectorOf<T>::type y) {
  constexpr T kRelative = T(0.99999e-5), kAbsolute = T(0.99999e-8);
  constexpr T kLargest = sizeof(T) == sizeof(float) ? T(3.4e38) : T(1.7e308);
  const auto difference = x > y ? x - y : y - x;
  return (difference <= kRelative * y + kAbsolute) & (x >= 0) & (y >= 0) & (y <= kLargest);
}

// A whole line that is not read soon goes past the caches: half the traffic.
inline void write_past(const unsigned char* line, unsigned char* to) {
#if defined(__SSE2__)
  for (index c = 0; c < kTile; c += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + c),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(line + c)));
  }
#else
  __builtin_memcpy(to, line, kTile);
#endif
}

// Before another thread is told.
inline void written_past() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// A tile's rows in bytes. As many of them as fill a line begin on one.
template <class T>
inline void rows_to_bytes(const DistanceTile<T>& in, const ByteRows<T>& to) {
  for (index r = 0; r < in.rows; ++r) {
    for (index c = 0; c < in.columns; c += kTile) {
      const T* from = in.d + r * in.stride + c;
      const T* scales = to.scales + in.second + c;
      unsigned char* const bytes = to.bytes + (in.first + r) * to.stride + in.second + c;
      if (in.columns - c < kTile) {
        to_bytes(from, scales, in.columns - c, bytes);
      } else {
        alignas(16) unsigned char line[kTile];
        to_bytes(from, scales, kTile, line);
        write_past(line, bytes);
      }
    }
  }
}

template <class T>
void tile_to_bytes(const DistanceTile<T>& in, const ByteRows<T>& to) {
  rows_to_bytes(in, to);
  T turned[kTile * kTile];
  for (index c = 0; c < in.columns && in.first != in.second; c += kTile) {
    const index columns = in.columns - c < kTile ? in.columns - c : kTile;
    for (index r = 0; r < in.rows; r += kTile) {
      const index rows = in.rows - r < kTile ? in.rows - r : kTile;
      const T* from = in.d + r * in.stride + c;
      if (rows == kTile && columns == kTile) {
        turn(from, in.stride, turned);
      } else {
        for (index i = 0; i < columns; ++i) {
          for (index j = 0; j < rows; ++j) turned[i * kTile + j] = from[j * in.stride + i];
        }
      }
      rows_to_bytes({turned, kTile, in.second + c, columns, in.first + r, rows}, to);
    }
  }
  written_past();
}

// The next tiles are asked for ahead of time, because no hardware foresees the way down a column.
template <class T>
bool mirrored(const T* d, index n, index top, const ByteRows<T>& bytes) {
  typedef typename VectorOf<T>::type Vector;
  constexpr index kWidth = Lanes<T>::per_part, kLine = 64 / sizeof(T);
  const index rows = n - top < kTile ? n - top : kTile;
  T turned[kTile * kTile];
  auto fine = Vector{} == Vector{};  // all
  for (index left = top; left < n; left += kTile) {
    const index columns = n - left < kTile ? n - left : kTile, next = left + kTile;
    if (columns < kTile) {  // at the edge
      for (index i = 0; i < rows; ++i) {
        for (index j = 0; j < columns; ++j) {
          const T x = d[(top + i) * n + left + j], y = d[(left + j) * n + top + i];
          fine &= mirrors<T>(x - Vector{}, y - Vector{});
        }
      }
      if (bytes.scales != nullptr) {
        rows_to_bytes({d + top * n + left, n, top, rows, left, columns}, bytes);
        rows_to_bytes({d + left * n + top, n, left, columns, top, rows}, bytes);
      }
      continue;
    }
    turn(d + left * n + top, n, turned);
    for (index i = 0; i < kTile; ++i) {
      for (index t = 0; t < kTile; t += kLine) {
        if (next + t < n) __builtin_prefetch(d + (top + i) * n + next + t, 0, 2);
        if (next + i < n) __builtin_prefetch(d + (next + i) * n + top + t, 0, 2);
      }
      for (index j = 0; j < kTile; j += kWidth) {
        fine &=
            mirrors<T>(load(d + (top + i) * n + left + j, T{}), load(turned + i * kTile + j, T{}));
      }
    }
    if (bytes.scales != nullptr) {
      rows_to_bytes({d + top * n + left, n, top, kTile, left, kTile}, bytes);
      rows_to_bytes({d + left * n + top, n, left, kTile, top, kTile}, bytes);
    }
  }
  written_past();
  for (index c = 0; c < kWidth; ++c) {
    if (fine[c] == 0) return false;
  }
  return true;
}
