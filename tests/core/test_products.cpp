// Distances by products, and swaps of many points, in the order that memory is read fastest.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.hpp"
#include "core/distance/product_distances.hpp"
#include "simd/simd.hpp"

namespace pyfast::test {

namespace {

const char* const kLevels[] = {"baseline", "avx2", "avx512"};

GroupPoints<float> points_of(const std::vector<float>& x, index n, index d) {
  GroupPoints<float> points;
  points.d = d;
  for (index i = 0; i < n; ++i) {
    points.ids.push_back(i);
    points.rows.push_back(x.data() + i * d);
  }
  return points;
}

std::vector<float> drawn_points(index n, index d, double away) {
  const std::vector<double> draws = uniform(std::size_t(n * d), unsigned(n + d), -1, 1);
  std::vector<float> x;
  for (const double draw : draws) x.push_back(float(draw + away));
  return x;
}

}  // namespace

TEST(distances_by_products_are_as_near_as_they_say) {
  Work work;
  for (const index n : {2, 5, 16, 17, 33, 200}) {
    for (const index d : {1, 15, 40, 130, 700}) {
      for (const double away : {0.0, 3.0}) {
        const std::vector<float> x = drawn_points(n, d, away);
        const GroupPoints<float> points = points_of(x, n, d);
        const index stride = (n + 15) / 16 * 16;
        std::vector<float> out(std::size_t(n * stride), -7.0f);
        ProductDistances distances;
        std::vector<float> largest(std::size_t(n), -7.0f);
        if (distances.measure(points, out.data(), stride, largest.data(), work) < 0) {
          CHECK(d < 40);  // of few numbers, many pairs are close
          continue;
        }
        for (index i = 0; i < n; ++i) {
          for (index j = 0; j < stride; ++j) {
            const float found = out[i * stride + j];
            if (i == j || j >= n) {
              CHECK(found == 0);
            } else if (found != -1) {
              const double exact = points.distance(i, j);
              CHECK_NEAR(double(found), exact, ProductDistances::error(d) * exact);
            }
            if (j < n) CHECK(found == out[j * stride + i]);
          }
          const float* row = out.data() + i * stride;
          CHECK(std::count(row, row + n, largest[i]) > 0);
          CHECK(largest[i] >= *std::max_element(row + i, row + n));
        }
      }
    }
  }
}

TEST(close_pairs_and_numbers_out_of_range_are_told) {
  Work work;
  const index n = 48, d = 64;
  std::vector<float> x = drawn_points(n, d, 0), out(std::size_t(n * n), 0.0f), largest(out);
  for (index t = 0; t < d; ++t) x[t] = x[d + t] + 1e-3f;  // the first two points
  ProductDistances distances;
  CHECK(distances.measure(points_of(x, n, d), out.data(), n, largest.data(), work) > 0);
  CHECK(out[1] == -1 && out[n] == -1);
  CHECK(std::count(out.begin(), out.end(), -1.0f) == 2);
  for (const float scale : {0.0f, 1e-25f, 1e25f}) {
    std::vector<float> y = x;
    for (float& number : y) number *= scale;
    CHECK(distances.measure(points_of(y, n, d), out.data(), n, largest.data(), work) < 0);
  }
  for (index i = 0; i < n; ++i) std::copy_n(x.data() + i % 3 * d, d, x.data() + i * d);
  CHECK(distances.measure(points_of(x, n, d), out.data(), n, largest.data(), work) < 0);
}

TEST(panels_give_the_same_distances_at_every_level) {
  for (const index d : {16, 48, 400}) {
    const std::vector<double> draws = uniform(std::size_t(48 * d), unsigned(d), -1, 1);
    const std::vector<float> panels(draws.begin(), draws.end()), norms(48, float(d) / 3);
    std::vector<float> first(16 * 32, -7.0f);
    for (const char* name : kLevels) {
      const simd::Kernels* k = simd::find_level(name);
      if (k == nullptr) continue;
      for (const index at_once : {1, 2}) {
        for (const index rows : {1, 6, 16}) {
          const index width = 16 * at_once, columns = width - 5;
          std::vector<float> out(16 * 32, -7.0f), mirrored(32 * 32, -7.0f), largest(32, 0.0f);
          k->panel_distances({panels.data(), panels.data() + 16 * d, at_once, d, norms.data(),
                              norms.data(), 4, rows, columns, out.data(), mirrored.data(), 32,
                              largest.data()});
          for (index i = 0; i < 16; ++i) {
            for (index j = 0; j < 32; ++j) {
              const float found = out[i * 32 + j];
              CHECK((found == -7) == (i >= rows || j >= width));
              CHECK(mirrored[j * 32 + i] == (i < rows && j < columns ? found : -7));
              if (found == -7) continue;
              float& same = first[i * 32 + j];
              if (same == -7) same = found;
              CHECK(std::memcmp(&same, &found, sizeof same) == 0);
              CHECK(largest[j] >= found);
            }
          }
        }
      }
    }
  }
}

// A problem of swaps, and its prices by the formula of simd.hpp in double.
struct Swaps {
  static constexpr index n = 300, k = 5, stride = 1104;
  std::vector<float> to, weights, first, second, barrier, runs;
  std::vector<std::int32_t> slots;

  Swaps() : barrier(std::size_t(stride), 0.0f), runs(std::size_t(k * stride)) {
    const auto numbers = [](index count, unsigned seed) {
      const std::vector<double> draws = uniform(std::size_t(count), seed);
      return std::vector<float>(draws.begin(), draws.end());
    };
    to = numbers(n * stride, 1);
    weights = numbers(n, 2);
    first = second = numbers(n, 3);
    for (float& d : second) d += 0.25f;
    for (index i = 0; i < n; ++i) slots.push_back(std::int32_t(i * i % 7 % (k - 1)));  // none of 4
  }
  simd::SwapCosts<float> problem() {
    return {to.data(),
            stride,
            n,
            k,
            weights.data(),
            first.data(),
            second.data(),
            barrier.data(),
            slots.data(),
            runs.data(),
            nullptr,
            nullptr};
  }
  double price(index slot, index c) const {
    double sum = 0;
    for (index i = 0; i < n; ++i) {
      const double limit = slots[i] == slot ? second[i] : first[i];
      sum += double{weights[i]} * std::min<double>(limit, to[i * stride + c]);
    }
    return sum;
  }
};

// All candidates at once are priced in another order of loops than a few at a time.
TEST(prices_of_many_points_are_those_of_a_few_candidates_at_a_time) {
  Swaps swaps;
  const index stride = Swaps::stride;
  for (const char* name : kLevels) {
    const simd::Kernels* kernels = simd::find_level(name);
    if (kernels == nullptr) continue;
    std::vector<float> costs(swaps.runs), some(costs);
    std::vector<float> least(std::size_t(stride), 0.0f), some_least(least);
    const simd::SwapCosts<float> problem = swaps.problem();
    const float all = kernels->swap_costs_f32(problem, 0, stride, costs.data(), least.data());
    float lowest = all + 1;
    for (index c = 0; c < stride; c += 16) {
      const float own = kernels->swap_costs_f32(problem, c, 16, some.data(), some_least.data());
      lowest = std::min(lowest, own);
    }
    CHECK(all == lowest);
    CHECK(costs == some);
    CHECK(least == some_least);
  }
}

// By slots, too, on every level the same bits; and they are the prices.
TEST(prices_by_slot_are_those_of_the_formula) {
  Swaps swaps;
  const index n = Swaps::n, k = Swaps::k, stride = Swaps::stride;
  std::vector<std::int32_t> by_slot, starts;
  for (index i = 0; i < n; i += simd::kSwapRun) {
    for (index s = 0; s < k; ++s) {
      starts.push_back(std::int32_t(by_slot.size()));
      for (index p = i; p < std::min(n, i + simd::kSwapRun); ++p) {
        if (swaps.slots[p] == s) by_slot.push_back(std::int32_t(p));
      }
    }
    starts.push_back(std::int32_t(by_slot.size()));
  }
  simd::SwapCosts<float> problem = swaps.problem();
  problem.by_slot = by_slot.data();
  problem.starts = starts.data();
  std::vector<float> same, same_least;
  for (const char* name : kLevels) {
    const simd::Kernels* kernels = simd::find_level(name);
    if (kernels == nullptr) continue;
    std::vector<float> costs(swaps.runs), least(std::size_t(stride), 0.0f);
    const index parts[] = {0, 16, 16, 1040, 1056, stride - 1056};  // from, count; all of them
    float lowest = std::numeric_limits<float>::infinity();
    for (index part = 0; part < 6; part += 2) {
      lowest = std::min(lowest, kernels->swap_costs_f32(problem, parts[part], parts[part + 1],
                                                        costs.data(), least.data()));
    }
    CHECK(lowest == *std::min_element(least.begin(), least.end()));
    for (index c = 0; c < stride; ++c) {
      float best = costs[c];
      for (index s = 0; s < k; ++s) {
        const double price = swaps.price(s, c);
        CHECK(std::abs(costs[s * stride + c] - price) <= price * 140 * 0x1p-24);
        best = std::min(best, costs[s * stride + c]);
      }
      CHECK(least[c] == best);
    }
    if (same.empty()) same = costs, same_least = least;
    CHECK(costs == same);
    CHECK(least == same_least);
  }
}

}  // namespace pyfast::test
