// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). A draw is a pure function of (counter, key), so that it
// does not depend on threads or on what was drawn before; numpy and Triton share the definition.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/run/memory.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"

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

// Seeded random subsets: the starts of the k-medoids search and the random baseline.
//
// The first k of the n numbers that come back in `all` are k distinct numbers of 0 .. n-1 in the
// order they were drawn (partial Fisher-Yates shuffle).
inline void random_subset_into(index n, index k, std::uint64_t seed, std::uint32_t stream,
                               index* all, Work& work) {
  Random random(seed, Purpose::subset, stream);
  for (index i = 0; i < n; ++i) {
    work.spend(1);
    all[i] = i;
  }
  for (index i = 0; i < k; ++i) {
    work.spend(8);
    std::swap(all[i], all[i + random.below(n - i)]);
  }
}

inline std::vector<index> random_subset(index n, index k, std::uint64_t seed, std::uint32_t stream,
                                        Work& work) {
  if (n > 65536 && k < n / 16) {  // of a long list, keep only the places that have been swapped
    Random random(seed, Purpose::subset, stream);
    std::unordered_map<index, index> moved;
    const auto at = [&](index i) { return moved.count(i) != 0 ? moved[i] : i; };
    std::vector<index> drawn;
    for (index i = 0; i < k; ++i) {
      work.spend(64);
      const index j = i + random.below(n - i);
      drawn.push_back(at(j));
      moved[j] = at(i);
    }
    return drawn;
  }
  std::vector<index> all;
  resize(all, n, work);
  random_subset_into(n, k, seed, stream, all.data(), work);
  all.resize(static_cast<std::size_t>(k));
  return all;
}

// Puts k distinct numbers of 0 .. n-1 in ascending order.
inline void sort_subset(std::vector<index>& subset, index n, Work& work) {
  const auto k = static_cast<index>(subset.size());
  if (k < n / 16) {
    work.spend(64 * k);
    std::sort(subset.begin(), subset.end());
    return;
  }
  std::vector<char> taken;
  resize(taken, n, work);
  for (const index i : subset) {
    work.spend(16);
    taken[i] = 1;
  }
  auto next = subset.begin();
  for (index i = 0; i < n; ++i) {
    work.spend(1);
    if (taken[i] != 0) *next++ = i;
  }
}

}  // namespace pyfast
