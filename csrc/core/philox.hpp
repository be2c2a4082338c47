// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). A draw is a pure function of (counter, key), so that it
// does not depend on threads or on what was drawn before; numpy and Triton share the definition.
#pragma once

#include <array>
#include <cstdint>

namespace pyfast {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

inline PhiloxCounter philox(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

// What a stream is used for; a word of the counter, so that two uses of a seed never share draws.
enum class Purpose : std::uint32_t {
  subset = 1,
  kmeans = 2,
  hard_preference = 3,
  aplp = 4,
  sample = 8
};

// The i-th draw of stream `stream` for one purpose under a 64-bit seed. Every draw takes one block.
class Random {
 public:
  Random(std::uint64_t seed, Purpose purpose, std::uint32_t stream)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        purpose_(static_cast<std::uint32_t>(purpose)),
        stream_(stream) {}

  // Uniform in 0 .. n-1, for n < 2^32. Multiply-shift on 64 random bits: bias below n / 2^64.
  std::int64_t below(std::int64_t n) {
    const PhiloxCounter r = next();
    const std::uint64_t high = (std::uint64_t{r[0]} * static_cast<std::uint64_t>(n));
    const std::uint64_t low = (std::uint64_t{r[1]} * static_cast<std::uint64_t>(n)) >> 32;
    return static_cast<std::int64_t>((high + low) >> 32);
  }

  // Uniform in [0, 1) with 53 random bits.
  double uniform() {
    const PhiloxCounter r = next();
    return static_cast<double>((std::uint64_t{r[0]} << 21) ^ (r[1] >> 11)) * 0x1.0p-53;
  }

 private:
  PhiloxCounter next() { return philox({draw_++, stream_, purpose_, 0}, key_); }

  PhiloxKey key_;
  std::uint32_t purpose_;
  std::uint32_t stream_;
  std::uint32_t draw_ = 0;
};

}  // namespace pyfast
