#include <cstring>

#include "check.hpp"
#include "core/sketch/sketch.hpp"
#include "simd/simd.hpp"

namespace pyfast::test {  // where `index` is ours and not that of <strings.h>

namespace {

const char* const kLevels[] = {"baseline", "avx2", "avx512"};

std::vector<float> numbers(index count, unsigned seed) {
  const std::vector<double> x = uniform(std::size_t(count), seed, -1, 1);
  return {x.begin(), x.end()};
}

bool negative(index g, index w, const StripeAddress& at) {
  const PhiloxCounter block =
      philox({std::uint32_t(g), std::uint32_t(w >> 7), at.module, 1}, at.key);
  return (block[(w >> 5) & 3] >> (w & 31) & 1) != 0;
}

// The definition in core/sketch.hpp, number by number.
void plain(const float* v, index n, index dim, const StripeAddress& at, float* y) {
  for (index start = 0; start * dim < n; start += kChunkStripes) {
    for (index w = 0; w < dim; ++w) {
      float sum = 0;
      for (index i = start; i < start + kChunkStripes && i * dim < n; ++i) {
        const index g = at.first_stripe + i;
        const index x = philox({std::uint32_t(g), 0, at.module, 0}, at.key)[0] & (dim - 1);
        const index from = i * dim + (w ^ x);
        const float value = from < n ? v[from] : 0;
        sum += negative(g, w, at) ? -value : value;
      }
      y[w] += sum;
    }
  }
}

}  // namespace

TEST(every_level_draws_the_blocks_of_philox) {
  std::vector<std::uint32_t> c0, c1;
  for (std::uint32_t i = 0; i < 48; ++i) {
    c0.push_back(i * 0x9E3779B9u);
    c1.push_back(~i);
  }
  for (const PhiloxKey key : {PhiloxKey{0, 0}, PhiloxKey{~0u, 7}, PhiloxKey{0xa4093822u, ~0u}}) {
    for (const char* name : kLevels) {
      const simd::Kernels* k = simd::find_level(name);
      if (k == nullptr) continue;
      std::vector<std::uint32_t> out(4 * 48);
      k->philox(c0.data(), c1.data(), 0x13198a2eu, ~0u, key.data(), 48, out.data());
      for (std::size_t i = 0; i < 48; ++i) {
        const PhiloxCounter block = philox({c0[i], c1[i], 0x13198a2eu, ~0u}, key);
        for (std::size_t j = 0; j < 4; ++j) CHECK(out[j * 48 + i] == block[j]);
      }
    }
  }
}

TEST(every_level_adds_a_stripe_as_defined) {
  constexpr index slab = 512, plane = 5;
  std::vector<std::uint32_t> words(4 * plane);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = std::uint32_t(i) * 0x85a308d3u;
  for (const char* name : kLevels) {
    const simd::Kernels* k = simd::find_level(name);
    if (k == nullptr) continue;
    for (std::uint32_t x = 0; x < slab; x += x < 40 ? 1 : 37) {
      for (const index count : {1, 15, 31, 32, 33, 100, 511, 512}) {
        const std::vector<float> v = numbers(count, x + 1), before = numbers(slab, 3);
        std::vector<float> got = before;
        k->add_stripe({v.data(), v.data(), count, x, words.data(), plane, got.data()});
        for (index w = 0; w < slab; ++w) {
          const index from = w ^ index(x);
          const bool minus = (words[((w >> 5) & 3) * plane + (w >> 7)] >> (w & 31) & 1) != 0;
          float want = before[w];
          if (from < count) want += minus ? -v[from] : v[from];
          CHECK(std::memcmp(&want, &got[w], sizeof want) == 0);
        }
      }
    }
  }
}

TEST(sketches_are_the_defined_bits_for_every_shape_and_thread_count) {
  struct Shape {
    index rows, n, dim;
  };
  for (const auto [rows, n, dim] :
       {Shape{3, 1, 128}, Shape{2, 127, 128}, Shape{1, 9000, 128}, Shape{5, 20000, 256},
        Shape{2, 70000, 4096}, Shape{3, 40000, 8192}, Shape{2, 9216, 65536},
        Shape{1, 140000, 1 << 20}, Shape{7, 300000, 512}}) {  // enough work for three threads
    const std::vector<float> v = numbers(rows * n, unsigned(n));
    const StripeAddress at{{0x12345678u, 0x9abcdef0u}, 7, kChunkStripes * 3};
    std::vector<float> want(std::size_t(rows * dim), 0.5f);
    for (index r = 0; r < rows; ++r) plain(&v[r * n], n, dim, at, &want[r * dim]);
    for (const int threads : {1, 2, 5}) {
      std::vector<float> got(want.size(), 0.5f);
      Work work(threads);
      add_sketch({v.data(), rows, n}, dim, at, got.data(), work);
      CHECK(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0);
    }
  }
}

TEST(no_numbers_change_nothing) {
  std::vector<float> y(128, 1.0f);
  Work work(2);
  add_sketch({nullptr, 1, 0}, 128, {}, y.data(), work);
  add_sketch({nullptr, 0, 5}, 128, {}, y.data(), work);
  for (const float value : y) CHECK(value == 1.0f);
}

}  // namespace pyfast::test
