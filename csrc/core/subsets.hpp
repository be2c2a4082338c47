// Seeded random subsets: the starts of the k-medoids search and the random baseline.
#pragma once

#include <numeric>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/philox.hpp"
#include "core/views.hpp"

namespace pyfast {

// The first k of the n numbers that come back in `all` are k distinct numbers of 0 .. n-1 in the
// order they were drawn (partial Fisher-Yates shuffle).
inline void random_subset_into(index n, index k, std::uint64_t seed, std::uint32_t stream,
                               index* all) {
  Random random(seed, Purpose::subset, stream);
  std::iota(all, all + n, index{0});
  for (index i = 0; i < k; ++i) std::swap(all[i], all[i + random.below(n - i)]);
}

inline std::vector<index> random_subset(index n, index k, std::uint64_t seed,
                                        std::uint32_t stream) {
  if (n > 65536 && k < n / 16) {  // of a long list, keep only the places that have been swapped
    Random random(seed, Purpose::subset, stream);
    std::unordered_map<index, index> moved;
    const auto at = [&](index i) { return moved.count(i) != 0 ? moved[i] : i; };
    std::vector<index> drawn;
    for (index i = 0; i < k; ++i) {
      const index j = i + random.below(n - i);
      drawn.push_back(at(j));
      moved[j] = at(i);
    }
    return drawn;
  }
  std::vector<index> all(static_cast<std::size_t>(n));
  random_subset_into(n, k, seed, stream, all.data());
  all.resize(static_cast<std::size_t>(k));
  return all;
}

}  // namespace pyfast
