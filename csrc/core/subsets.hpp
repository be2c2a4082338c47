// Seeded random subsets: the starts of the k-medoids search and the random baseline.
#pragma once

#include <numeric>
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
  std::vector<index> all(static_cast<std::size_t>(n));
  random_subset_into(n, k, seed, stream, all.data());
  all.resize(static_cast<std::size_t>(k));
  return all;
}

}  // namespace pyfast
