#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.hpp"
#include "core/logdet/candidates.hpp"
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include "simd/cpu.hpp"
#endif
#include "simd/simd.hpp"

namespace pyfast::test {  // where `index` is ours and not that of <strings.h>

namespace {

const char* const kLevels[] = {"baseline", "avx2", "avx512"};

// The definition in simd.hpp, number by number.
template <class Sum, class A, class B, class Term>
Sum plain(const A* a, const B* b, index d, Term&& term) {
  constexpr index lanes = 64 / sizeof(Sum), chunk = 4096 / sizeof(Sum);
  Sum total = 0;
  for (index t0 = 0; t0 == 0 || t0 < d; t0 += chunk) {
    Sum sums[lanes] = {};
    for (index t = t0; t < std::min(d, t0 + chunk); ++t) {
      Sum& sum = sums[(t - t0) % lanes];
      sum = term(static_cast<Sum>(a[t]), static_cast<Sum>(b[t]), sum);
    }
    for (index half = lanes / 2; half > 0; half /= 2) {
      for (index l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    total = t0 == 0 ? sums[0] : total + sums[0];
  }
  return total;
}

template <class A, class B, class Sum, class Term>
bool same_bits(simd::Block<A, B, Sum> block, Term&& term) {
  for (const index d : {1, 2, 15, 16, 17, 31, 64, 100, 511, 513, 1025, 2300}) {
    for (const index rows : {1, 3, 9, 34}) {
      const index cols = 1 + (d + rows) % 14, stride = d + 3;
      const std::vector<double> x = uniform(std::size_t(rows * stride), unsigned(d), -1, 1),
                                y = uniform(std::size_t(cols * stride), unsigned(d + 1), -1, 1);
      const std::vector<A> a(x.begin(), x.end());
      const std::vector<B> b(y.begin(), y.end());
      std::vector<Sum> out(std::size_t(rows * (cols + 2)), Sum(-7));
      block(a.data() + 1, rows, stride, b.data() + 1, cols, stride, d, out.data(), cols + 2);
      for (index i = 0; i < rows; ++i) {
        for (index j = 0; j < cols; ++j) {
          const Sum want = plain<Sum>(&a[i * stride + 1], &b[j * stride + 1], d, term);
          if (std::memcmp(&want, &out[i * (cols + 2) + j], sizeof want) != 0) return false;
        }
        for (index j = cols; j < cols + 2; ++j) {
          if (out[i * (cols + 2) + j] != Sum(-7)) return false;  // written past the block
        }
      }
    }
  }
  return true;
}

template <class T>
bool same_squares(void (*squares)(const T*, index, index, index, double*)) {
  for (const index d : {1, 7, 8, 9, 100, 511, 512, 513, 1023, 1024, 1030, 1536, 2049, 2600}) {
    for (const index rows : {1, 2, 3, 4, 5, 8, 11}) {
      const index stride = d + 3;
      const std::vector<double> numbers = uniform(std::size_t(rows * stride), unsigned(d), -1, 1);
      const std::vector<T> x(numbers.begin(), numbers.end());
      std::vector<double> out(std::size_t(rows + 1), -7);
      squares(x.data() + 1, rows, stride, d, out.data());
      for (index i = 0; i < rows; ++i) {
        const T* row = &x[std::size_t(i * stride + 1)];
        const auto product = [](double a, double b, double sum) { return std::fma(a, b, sum); };
        const double want = plain<double>(row, row, d, product);
        if (std::memcmp(&want, &out[std::size_t(i)], sizeof want) != 0) return false;
      }
      if (out[std::size_t(rows)] != -7) return false;
    }
  }
  return true;
}

// Rows in any order, from any number on, alike or not beside the boundaries of registers; columns
// any distance apart; each product as near as float_dot_error says. Nothing beside the rows and
// columns is counted, and nothing written beside the block.
bool rough_enough(const simd::Kernels& kernels, bool alike) {
  for (const index d : {1, 7, 8, 15, 16, 17, 33, 63, 255, 256, 257, 511, 513, 1025, 2048, 3000}) {
    const index row = alike ? (d + 16) / 16 * 16 : d + 1;
    for (index rows = 1; rows <= simd::kFloatDotsRows; ++rows) {
      const index cols = 1 + (d + 5 * rows) % simd::kFloatDotsColumns, apart = d + 5;
      std::vector<double> x = uniform(std::size_t(16 * row + 32), unsigned(d), -1, 1),
                          y = uniform(std::size_t(cols * apart), unsigned(d + 1), -1, 1);
      for (index i = 0; i < 16; ++i) x[std::size_t(rows + i * row + d)] = NAN;
      for (index j = 0; j < cols; ++j) y[std::size_t(j * apart + d)] = NAN;
      const std::vector<float> a(x.begin(), x.end()), b(y.begin(), y.end());
      std::vector<const float*> at;
      for (index i = 0; i < rows; ++i) at.push_back(&a[std::size_t(rows + (7 * i + d) % 16 * row)]);
      std::vector<float> out(std::size_t(rows * (cols + 2)), NAN);
      kernels.float_dots(at.data(), rows, b.data(), cols, apart, d, out.data(), cols + 2);
      for (index i = 0; i < rows; ++i) {
        for (index j = 0; j < cols + 2; ++j) {
          const double found = out[std::size_t(i * (cols + 2) + j)];
          if (j >= cols) {
            if (!std::isnan(found)) return false;
            continue;
          }
          const float *v = at[std::size_t(i)], *w = &b[std::size_t(j * apart)];
          double want = 0, of_v = 0, of_w = 0;
          for (index t = 0; t < d; ++t) {
            want += double(v[t]) * double(w[t]);
            of_v += double(v[t]) * double(v[t]);
            of_w += double(w[t]) * double(w[t]);
          }
          if (!(std::abs(found - want) <= float_dot_error(d) * std::sqrt(of_v * of_w)))
            return false;
        }
      }
    }
  }
  return true;
}

// The same of products beside panels.
bool panel_enough(const simd::Kernels& kernels) {
  constexpr index kWidth = simd::kPanelWidth;
  for (const index d : {1, 2, 15, 255, 256, 257, 512, 700, 3000}) {
    for (const index rows : {1, 2, 3, 4, 5, 6, 7, 12, 13, 24, 31}) {
      const index panels = 1 + (d + rows) % 3, columns = panels * kWidth;
      const index apart = d + 3, panels_apart = d * kWidth + 5, stride = columns + 1;
      const std::vector<double> x = uniform(std::size_t(rows * apart), unsigned(d), -1, 1),
                                y = uniform(std::size_t(panels * panels_apart), unsigned(d), -1, 1);
      const std::vector<float> a(x.begin(), x.end()), b(y.begin(), y.end());
      std::vector<float> out(std::size_t(rows * stride), NAN);
      kernels.panel_dots(a.data(), rows, apart, b.data(), panels, panels_apart, d, out.data(),
                         stride);
      for (index i = 0; i < rows; ++i) {
        if (!std::isnan(out[std::size_t(i * stride + columns)])) return false;
        for (index c = 0; c < columns; ++c) {
          const float* column = &b[std::size_t(c / kWidth * panels_apart + c % kWidth)];
          double want = 0, size = 0;
          for (index t = 0; t < d; ++t) {
            const double term = double(a[std::size_t(i * apart + t)]) * column[t * kWidth];
            want += term;
            size += std::abs(term);
          }
          const double error = std::abs(out[std::size_t(i * stride + c)] - want);
          if (!(error <= (260 + double(d) / 256) * 0x1.0p-24 * size)) return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

namespace {

const auto product = [](auto a, auto b, auto sum) { return std::fma(a, b, sum); };
const auto square = [](auto a, auto b, auto sum) { return std::fma(a - b, a - b, sum); };

template <class T>
bool same_pairs(simd::PairSquares<T> pair_squares) {
  for (const index d : {16, 48, 512, 528, 1040, 2064}) {
    for (const index n : {1, 2, 3, 4, 5, 7, 11, 12, 13, 14, 15, 16, 26, 29, 31}) {
      const index stride = (n + 15) / 16 * 16;
      const std::vector<double> numbers = uniform(std::size_t(n * d), unsigned(d + n), -1, 1);
      const std::vector<T> x(numbers.begin(), numbers.end());
      std::vector<const T*> rows;
      for (index i = 0; i < n; ++i) rows.push_back(x.data() + i * d);
      rows.resize(std::size_t(n + simd::kSpareRows), x.data());
      std::vector<T> out(std::size_t(n * stride) + 1, T(-7));
      const index part = n / 3;  // nothing, or the first rows on their own
      pair_squares(rows.data(), n, 0, part, 0, d, out.data(), stride, {});
      const index chunk = std::min<index>(simd::kChunkBytes / sizeof(T), d);
      pair_squares(rows.data(), n, part, n, 0, chunk, out.data(), stride, {x.data(), n * d});
      if (chunk < d) pair_squares(rows.data(), n, part, n, chunk, d, out.data(), stride, {});
      for (index i = 0; i < n; ++i) {
        for (index j = 0; j < stride; ++j) {
          const T want = j < n && j != i ? plain<T>(rows[i], rows[j], d, square) : T(0);
          if (std::memcmp(&want, &out[i * stride + j], sizeof want) != 0) return false;
        }
      }
      if (out.back() != T(-7)) return false;
    }
  }
  return true;
}

template <class T, class Squares>
bool same_squares_to(Squares squares_to) {
  for (const index d : {1, 7, 33, 511, 513, 1100}) {
    for (const index n : {0, 1, 2, 3, 5, 9}) {
      const std::vector<double> numbers = uniform(std::size_t((n + 1) * d), unsigned(d), -1, 1);
      const std::vector<T> x(numbers.begin(), numbers.end());
      std::vector<const T*> rows;
      for (index i = 0; i < n; ++i) rows.push_back(x.data() + i * d);
      const T* one = x.data() + n * d;
      std::vector<double> out(std::size_t(n) + 1, -7);
      squares_to(rows.data(), n, one, d, out.data());
      for (index i = 0; i < n; ++i) {
        if (out[i] != plain<double>(rows[i], one, d, square)) return false;
      }
      if (out.back() != -7) return false;
    }
  }
  return true;
}

// A = L L^T and L^{-1}, number by number, each in the order of simd/factor_kernels.hpp.
void factorise_plainly(std::vector<double>& a, index d, std::vector<double>& inverse) {
  for (index i = 0; i < d; ++i) {
    for (index j = i; j < d; ++j) {
      for (index s = 0; s < i; ++s) a[i * d + j] -= a[s * d + i] * a[s * d + j];
    }
    const double pivot = std::sqrt(a[i * d + i]);
    for (index j = i; j < d; ++j) {
      a[j * d + i] = a[i * d + j] = j == i ? pivot : a[i * d + j] * (1 / pivot);
    }
    for (index j = 0; j <= i; ++j) {
      double& entry = inverse[i * d + j] = j == i ? 1 : 0;
      for (index s = j; s < i; ++s) entry -= a[i * d + s] * inverse[s * d + j];
      entry *= 1 / pivot;
    }
  }
}

// L L^T = A for A = I + sum w w^T, and what else is made of L; the bits of the plain way.
bool factors_are_right(const simd::Kernels& k, index d) {
  const simd::Kernels& plainest = *simd::find_level("baseline");
  const auto room = std::size_t(d * d);
  std::vector<double> high(room, 0), low(room, 0), inverse(room, 0);
  std::vector<double> same_high(high), same_low(low), same_inverse(inverse);
  for (unsigned seed = 0; seed < 5; ++seed) {
    std::vector<double> w = uniform(std::size_t(d), seed, -1, 1);
    w[0] = seed == 0 ? 0x1.0p30 : 0x1.0p-30;  // its square takes half of the digits of the rest
    for (index i = 0; i < d; ++i) {
      const index at = i * d + i;
      k.add_scaled(w[i], &w[i], d - i, &high[at], &low[at]);
      plainest.add_scaled(w[i], &w[i], d - i, &same_high[at], &same_low[at]);
    }
  }
  if (high != same_high || low != same_low || low[0] != 4 * 0x1.0p-60) return false;
  std::vector<double> a = high, same = high;
  for (index s = 0; s < d; ++s) same[s * d + s] = a[s * d + s] += 1;
  const std::vector<double> matrix = a;
  for (index i = 0; i < d; ++i) std::fill_n(&a[i * d], i, NAN);  // it is given above the diagonal
  k.factorise(a.data(), d);
  k.invert(a.data(), d, inverse.data());
  factorise_plainly(same, d, same_inverse);
  if (a != same || inverse != same_inverse) return false;
  const std::vector<double> v = uniform(std::size_t(d), 9, -1, 1);
  std::vector<double> z = v, same_z = v, reach(v), same_reach(v);
  k.forward(a.data(), d, z.data());
  plainest.forward(a.data(), d, same_z.data());
  std::vector<double> y = z, same_y = z;
  k.backward(a.data(), d, y.data(), reach.data());
  plainest.backward(a.data(), d, same_y.data(), same_reach.data());
  if (z != same_z || y != same_y || reach != same_reach) return false;
  for (index i = 0; i < d; ++i) {
    double of_z = 0, of_inverse = 0, of_y = 0, reached = 0;
    for (index j = 0; j < d; ++j) {
      double entry = 0;
      for (index s = 0; s <= std::min(i, j); ++s) entry += a[i * d + s] * a[j * d + s];
      const double scale = std::sqrt(matrix[i * d + i] * matrix[j * d + j]);
      if (j >= i && std::abs(entry - matrix[i * d + j]) > 1e-13 * scale) return false;
      if (a[i * d + j] != a[j * d + i]) return false;
      if (j <= i) of_z += a[i * d + j] * z[j];
      of_inverse += inverse[i * d + j] * v[j];
      if (j >= i) of_y += a[j * d + i] * y[j];
      if (j >= i) reached += std::abs(a[j * d + i] * y[j]);
    }
    if (std::abs(of_z - v[i]) > 1e-9 || std::abs(of_inverse - z[i]) > 1e-9) return false;
    if (std::abs(of_y - z[i]) > 1e-9 || std::abs(reached - reach[i]) > 1e-9 * reached) return false;
  }
  return true;
}

}  // namespace

TEST(every_level_gives_the_documented_bits) {
  for (const char* name : kLevels) {
    const simd::Kernels* k = simd::find_level(name);
    if (k == nullptr) {
      std::printf("  (no %s here)\n", name);
      continue;
    }
    CHECK(same_bits(k->dot_f32, product));
    CHECK(same_bits(k->dot_f64, product));
    CHECK(same_bits(k->dot_wide, product));
    CHECK(same_bits(k->dot_mixed, product));
    CHECK(same_bits(k->squared_distance_f32, square));
    CHECK(same_bits(k->squared_distance_f64, square));
    CHECK(same_bits(k->squared_distance_wide, square));
    CHECK(same_squares(k->squared_norms_f32));
    CHECK(same_squares(k->squared_norms_f64));
    CHECK(rough_enough(*k, true) && rough_enough(*k, false));
    CHECK(panel_enough(*k));
    CHECK(same_pairs<float>(k->pair_squares_f32));
    CHECK(same_pairs<double>(k->pair_squares_f64));
    CHECK(same_squares_to<float>(k->squares_to_wide));
    CHECK(same_squares_to<double>(k->squares_to_f64));
    for (const index d : {1, 2, 7, 8, 9, 15, 33, 64, 100, 130}) CHECK(factors_are_right(*k, d));
  }
  CHECK(simd::find_level("sse9") == nullptr);
}

TEST(roots_tell_what_float_cannot_hold) {
  const float inf = std::numeric_limits<float>::infinity(), nan = inf - inf;
  for (const char* name : kLevels) {
    const simd::Kernels* k = simd::find_level(name);
    if (k == nullptr) continue;
    for (const float odd : {2.0f, 0.0f, 1e-30f, 1e-45f, 1e38f, inf, nan}) {
      for (const index n : {2, 15, 16, 17}) {
        const index stride = (n + 15) / 16 * 16;
        std::vector<float> x(std::size_t(n * stride), 0.0f), largest(std::size_t(n), -1.0f);
        for (index i = 0; i < n; ++i) {
          for (index j = 0; j < n; ++j) x[i * stride + j] = i == j ? 0.0f : float(1 + i + j);
        }
        x[stride] = x[1] = odd;
        CHECK(k->roots(x.data(), n, stride, largest.data()) == (odd == 2.0f));
        if (odd != 2.0f) continue;
        for (index i = 0; i < n; ++i) {
          float most = 0;
          for (index j = 0; j < stride; ++j) {
            const float want = j >= n || i == j ? 0.0f : std::sqrt(float(1 + i + j));
            CHECK(x[i * stride + j] == want);
            most = std::max(most, want);
          }
          CHECK(largest[i] == most);
        }
      }
    }
  }
}

TEST(narrow_tells_whether_float_holds_the_numbers) {
  for (const char* name : kLevels) {
    const simd::Kernels* k = simd::find_level(name);
    if (k == nullptr) continue;
    std::vector<double> x{1, 2.5, -3, 4, 5, 6};
    const double* rows[] = {x.data(), x.data() + 3};
    std::vector<float> out(32, -1.0f);
    CHECK(k->narrow(rows, 2, 3, nullptr, out.data(), 16));
    CHECK(out[0] == 1 && out[1] == 2.5f && out[2] == -3 && out[3] == 0 && out[15] == 0);
    CHECK(out[16] == 4 && out[18] == 6 && out[31] == 0);
    x[4] = 0.1;
    CHECK(!k->narrow(rows, 2, 3, nullptr, out.data(), 16));
    k->narrow(rows, 2, 3, rows[0], out.data(), 16);
    CHECK(out[0] == 0 && out[17] == static_cast<float>(0.1 - 2.5) && out[18] == 9);
  }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
TEST(the_processor_has_what_the_compiler_finds) {
  const simd::Cpu cpu = simd::detect_cpu();
  CHECK(cpu.avx2 == (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0));
  CHECK(cpu.avx512 ==
        (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0));
}
#endif

TEST(no_numbers_sum_to_zero) {
  const double a[1] = {1}, b[1] = {2};
  CHECK(simd::dot(a, b, 0) == 0);
  CHECK(simd::dot(a, b, 1) == 2);
}

}  // namespace pyfast::test
