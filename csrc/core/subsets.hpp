// Seeded random subsets: the starts of the k-medoids search and the random baseline.
#pragma once

#include <numeric>
#include <utility>
#include <vector>

#include "core/philox.hpp"
#include "core/views.hpp"

namespace pyfast {

// k distinct numbers of 0 .. n-1 in the order they were drawn (partial Fisher-Yates shuffle).
inline std::vector<index> random_subset(index n, index k, std::uint64_t seed,
                                        std::uint32_t stream) {
  Random random(seed, Purpose::subset, stream);
  std::vector<index> all(static_cast<std::size_t>(n));
  std::iota(all.begin(), all.end(), index{0});
  for (index i = 0; i < k; ++i) std::swap(all[i], all[i + random.below(n - i)]);
  all.resize(static_cast<std::size_t>(k));
  return all;
}

}  // namespace pyfast
