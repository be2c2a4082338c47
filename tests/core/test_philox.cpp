#include <algorithm>
#include <set>

#include "check.hpp"
#include "core/run/random.hpp"

namespace pyfast::test {

// The known answers that Random123 publishes for philox4x32-10.
TEST(philox_known_answers) {
  CHECK((philox({0, 0, 0, 0}, {0, 0}) ==
         PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
         PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(draws_stay_in_range_and_fill_it) {
  Random random(7, Purpose::subset, 0);
  std::vector<int> seen(10, 0);
  double low = 1, high = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::int64_t draw = random.below(10);
    CHECK(draw >= 0 && draw < 10);
    ++seen[static_cast<std::size_t>(draw)];
    const double u = random.uniform();
    CHECK(u >= 0 && u < 1);
    low = std::min(low, u);
    high = std::max(high, u);
  }
  for (const int count : seen) CHECK(count > 850 && count < 1150);  // 5 standard deviations
  CHECK(low < 0.01 && high > 0.99);
}

TEST(subsets_are_distinct_and_differ_by_stream) {
  for (index n = 1; n < 20; ++n) {
    for (index k = 1; k <= n; ++k) {
      const std::vector<index> subset = test::drawn(n, k, 3, 0);
      CHECK(static_cast<index>(std::set<index>(subset.begin(), subset.end()).size()) == k);
      CHECK(*std::max_element(subset.begin(), subset.end()) < n);
    }
  }
  CHECK(test::drawn(1000, 10, 3, 0) != test::drawn(1000, 10, 3, 1));
  CHECK(test::drawn(1000, 10, 3, 0) != test::drawn(1000, 10, 4, 0));
}

}  // namespace pyfast::test
