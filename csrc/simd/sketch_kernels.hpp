// The kernels of the sketches. A part of kernels.hpp, which includes it where it stands: inside the
// unnamed namespace of one instruction set, so it has no includes of its own.

typedef std::uint64_t Wides __attribute__((vector_size(PYFAST_VECTOR_BYTES)));
typedef std::uint32_t Words __attribute__((vector_size(PYFAST_VECTOR_BYTES)));

// The 64-bit products of the lower halves; the upper halves of `a` are ignored.
inline Wides wide_product(Wides a, std::uint64_t b) {
#if defined(__AVX512F__)
  return (Wides)_mm512_mul_epu32((__m512i)a, (__m512i)(b - Wides{}));
#elif defined(__AVX2__)
  return (Wides)_mm256_mul_epu32((__m256i)a, (__m256i)(b - Wides{}));
#elif defined(__SSE2__)
  return (Wides)_mm_mul_epu32((__m128i)a, (__m128i)(b - Wides{}));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

// Each counter has a 64-bit lane, of which the upper half may hold anything.
void philox(const std::uint32_t* c0, const std::uint32_t* c1, std::uint32_t c2, std::uint32_t c3,
            const std::uint32_t* key, index count, std::uint32_t* out) {
  constexpr int lanes = PYFAST_VECTOR_BYTES / 8;
  for (index start = 0; start < count; start += lanes) {
    Wides a, b, c = c2 - Wides{}, d = c3 - Wides{};
    for (int l = 0; l < lanes; ++l) {
      a[l] = c0[start + l];
      b[l] = c1[start + l];
    }
    std::uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const Wides p0 = wide_product(a, 0xD2511F53u), p1 = wide_product(c, 0xCD9E8D57u);
      a = (p1 >> 32) ^ b ^ k0;
      b = p1;
      c = (p0 >> 32) ^ d ^ k1;
      d = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int l = 0; l < lanes; ++l) {
      out[start + l] = static_cast<std::uint32_t>(a[l]);
      out[count + start + l] = static_cast<std::uint32_t>(b[l]);
      out[2 * count + start + l] = static_cast<std::uint32_t>(c[l]);
      out[3 * count + start + l] = static_cast<std::uint32_t>(d[l]);
    }
  }
}

// Moves number l of a vector to place l ^ x.
class LaneXor {
 public:
  static constexpr int lanes = Lanes<float>::per_part;

#if defined(__AVX512F__) || defined(__AVX2__)
  explicit LaneXor(std::uint32_t x) {
    for (int l = 0; l < lanes; ++l) places_[l] = static_cast<std::uint32_t>(l) ^ x;
  }
  Floats operator()(Floats v) const {
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps((__m512i)places_, v);
#else
    return _mm256_permutevar8x32_ps(v, (__m256i)places_);
#endif
  }

 private:
  Words places_;
#else
  explicit LaneXor(std::uint32_t x)
      : by_one_((x & 1 ? ~0u : 0u) - Words{}), by_two_((x & 2 ? ~0u : 0u) - Words{}) {}
  Floats operator()(Floats v) const {
    v = pick(by_one_, Floats{v[1], v[0], v[3], v[2]}, v);
    return pick(by_two_, Floats{v[2], v[3], v[0], v[1]}, v);
  }

 private:
  static Floats pick(Words mask, Floats yes, Floats no) {
    return (Floats)((mask & (Words)yes) | (~mask & (Words)no));
  }
  Words by_one_, by_two_;
#endif
};

// 32 numbers and one word of signs at a time, in the order in which they lie in memory; where they
// go is in the first-level cache.
void add_stripe(const StripePiece& in) {
  constexpr int lanes = LaneXor::lanes, parts = 32 / lanes;
  const StripePiece piece = in;  // a copy that no store below can change
  const LaneXor lane_xor(piece.x & (lanes - 1));
  const std::uint32_t part_xor = (piece.x & 31) / lanes;
  Words bits[parts];
  for (int i = 0; i < parts; ++i) {
    for (int l = 0; l < lanes; ++l) {
      bits[i][l] = std::uint32_t{1} << ((static_cast<std::uint32_t>(i) ^ part_xor) * lanes +
                                        static_cast<std::uint32_t>(l));
    }
  }
  const auto group = [&](const float* from, index g) {
    const index to_group = g ^ (piece.x >> 5);
    const Words word = piece.words[(to_group & 3) * piece.plane + (to_group >> 2)] - Words{};
    float* to = piece.to + to_group * 32;
    for (int i = 0; i < parts; ++i) {
      const Words sign = (Words)((word & bits[i]) == bits[i]) & 0x80000000u;
      const Floats v = lane_xor(load(from + i * lanes, 0.0f));
      float* at = to + (static_cast<std::uint32_t>(i) ^ part_xor) * lanes;
      store(at, load(at, 0.0f) + (Floats)((Words)v ^ sign));
    }
  };
  const index whole = piece.count / 32;
  for (index g = 0; g < whole; ++g) {
    __builtin_prefetch(piece.next + g * 32);
    __builtin_prefetch(piece.next + g * 32 + 16);
    group(piece.from + g * 32, g);
  }
  if (whole * 32 < piece.count) {
    float end[32];
    pad(&piece.from, whole * 32, 1, piece.count - whole * 32, 32, end);
    group(end, whole);
  }
}

// Rows of products that have their sums in registers at once, kProductLanes columns of each.
constexpr int kProductRows = PYFAST_VECTOR_BYTES == 64 ? 12 : 6;

template <int Rows>
inline void product_rows(const ProductTile& tile, index row, index column) {
  constexpr int lanes = Lanes<float>::per_part, parts = kParts;
  const int width =
      static_cast<int>(tile.rank - column < kProductLanes ? tile.rank - column : kProductLanes);
  float* out = tile.out + row * tile.rank + column;
  float edge[Rows * kProductLanes] = {};
  Floats sums[Rows][parts];
  if (!tile.fresh) {
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < width; ++j) edge[i * kProductLanes + j] = out[i * tile.rank + j];
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int p = 0; p < parts; ++p) sums[i][p] = load(edge + i * kProductLanes + p * lanes, 0.0f);
  }
  const float* wide = tile.wide + row;
  const float* narrow = tile.narrow + column;
  for (index t = 0; t < tile.tokens; ++t) {
    Floats right[parts];
    for (int p = 0; p < parts; ++p) right[p] = held(load(narrow + p * lanes, 0.0f));
    for (int i = 0; i < Rows; ++i) {
      const Floats left = wide[i] - Floats{};
      for (int p = 0; p < parts; ++p) sums[i][p] = fused(left, right[p], sums[i][p]);
    }
    wide += tile.wide_stride;
    narrow += tile.narrow_stride;
  }
  if (width == kProductLanes) {
    for (int i = 0; i < Rows; ++i) {
      for (int p = 0; p < parts; ++p) store(out + i * tile.rank + p * lanes, sums[i][p]);
    }
    return;
  }
  for (int i = 0; i < Rows; ++i) {
    for (int p = 0; p < parts; ++p) store(edge + i * kProductLanes + p * lanes, sums[i][p]);
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < width; ++j) out[i * tile.rank + j] = edge[i * kProductLanes + j];
  }
}

void add_products(const ProductTile& tile) {
  for (index column = 0; column < tile.rank; column += kProductLanes) {
    index row = 0;
    for (; row + kProductRows <= tile.rows; row += kProductRows) {
      product_rows<kProductRows>(tile, row, column);
    }
    for (; row + 4 <= tile.rows; row += 4) product_rows<4>(tile, row, column);
    for (; row < tile.rows; ++row) product_rows<1>(tile, row, column);
  }
}
