// Seeded random subsets: the starts of the k-medoids search and the random baseline.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "core/views.hpp"

namespace pyfast {

// The first k of the n numbers that come back in `all` are k distinct numbers of 0 .. n-1 in the
// order they were drawn (partial Fisher-Yates shuffle).
inline void random_subset_into(index n, index k, std::uint64_t seed, std::uint32_t stream,
                               index* all, Token& token) {
  Random random(seed, Purpose::subset, stream);
  for (index i = 0; i < n; ++i) {
    token.spend(1);
    all[i] = i;
  }
  for (index i = 0; i < k; ++i) {
    token.spend(8);
    std::swap(all[i], all[i + random.below(n - i)]);
  }
}

inline std::vector<index> random_subset(index n, index k, std::uint64_t seed, std::uint32_t stream,
                                        Token& token) {
  if (n > 65536 && k < n / 16) {  // of a long list, keep only the places that have been swapped
    Random random(seed, Purpose::subset, stream);
    std::unordered_map<index, index> moved;
    const auto at = [&](index i) { return moved.count(i) != 0 ? moved[i] : i; };
    std::vector<index> drawn;
    for (index i = 0; i < k; ++i) {
      token.spend(64);
      const index j = i + random.below(n - i);
      drawn.push_back(at(j));
      moved[j] = at(i);
    }
    return drawn;
  }
  std::vector<index> all;
  resize(all, n, token);
  random_subset_into(n, k, seed, stream, all.data(), token);
  all.resize(static_cast<std::size_t>(k));
  return all;
}

// Puts k distinct numbers of 0 .. n-1 in ascending order.
inline void sort_subset(std::vector<index>& subset, index n, Token& token) {
  const auto k = static_cast<index>(subset.size());
  if (k < n / 16) {
    token.spend(64 * k);
    std::sort(subset.begin(), subset.end());
    return;
  }
  std::vector<char> taken;
  resize(taken, n, token);
  for (const index i : subset) {
    token.spend(16);
    taken[i] = 1;
  }
  auto next = subset.begin();
  for (index i = 0; i < n; ++i) {
    token.spend(1);
    if (taken[i] != 0) *next++ = i;
  }
}

}  // namespace pyfast
