#include <algorithm>
#include <cmath>

#include "bind/args.hpp"
#include "core/distance/check.hpp"
#include "core/run/random.hpp"
#include "simd/simd.hpp"

namespace pyfast::bind {

namespace {

bool valid(const float* data, index count, bool nonnegative) {
  return simd::kernels().valid_f32(data, count, nonnegative);
}
bool valid(const double* data, index count, bool nonnegative) {
  return simd::kernels().valid_f64(data, count, nonnegative);
}

// Block by block, and number by number only in the block that has a bad one.
template <class T>
index first_invalid_in(const T* data, index count, bool nonnegative, Work& work) {
  constexpr index kBlock = 4096;
  for (index start = 0; start < count; start += kBlock) {
    const index end = std::min(start + kBlock, count);
    work.spend(end - start);
    if (valid(data + start, end - start, nonnegative)) continue;
    for (index i = start; i < end; ++i) {
      if (!std::isfinite(data[i]) || (nonnegative && data[i] < 0)) return i;
    }
  }
  return -1;
}

// Position, in memory order, of the first value that is NaN, infinite or (if asked) negative.
index first_invalid(const py::array& array, bool nonnegative) {
  const index count = array.size();
  const auto search = [&](const auto* data) {
    index found = -1;
    without_gil(1, [&](Work& work) { found = first_invalid_in(data, count, nonnegative, work); });
    return found;
  };
  return is_float32(array) ? search(checked<float>(array, "array", array.ndim()))
                           : search(checked<double>(array, "array", array.ndim()));
}

// Groups of square distance matrices laid end to end.
Groups checked_squares(const py::array& distances, const py::array& offsets) {
  const Groups groups = checked_groups(offsets);
  double total = 0;  // sizes come unchecked: as a double it cannot wrap around
  for (index b = 0; b < groups.count; ++b) {
    total += static_cast<double>(groups.size(b)) * static_cast<double>(groups.size(b));
  }
  if (total != static_cast<double>(distances.size())) {
    throw py::type_error("distances: expected sum of n_b^2 of them");
  }
  return groups;
}

// Over all groups; -1 if all are symmetric.
index first_asymmetric_groups(const py::array& distances, const py::array& offsets) {
  const Groups groups = checked_squares(distances, offsets);
  const auto search = [&](const auto* d) {
    index found = -1, start = 0;
    without_gil(1, [&](Work& work) {
      for (index b = 0; b < groups.count && found < 0; ++b) {
        const index n = groups.size(b);
        const index local = first_asymmetric(d + start, n, work);
        if (local >= 0) found = start + local;
        start += n * n;
      }
    });
    return found;
  };
  return is_float32(distances) ? search(checked<float>(distances, "distances", 1))
                               : search(checked<double>(distances, "distances", 1));
}

py::array_t<index> random_subsets(const py::array& sizes, index k, std::uint64_t seed) {
  const index* n = checked<index>(sizes, "sizes", 1);
  check_range(k, "k", 1, index{1} << 32);  // of no sizes at all, too
  for (index b = 0; b < sizes.size(); ++b) {
    check_range(n[b], "sizes", 1, index{1} << 32);
    check_range(k, "k", 1, n[b]);
  }
  py::array_t<index> out(std::vector<py::ssize_t>{sizes.size(), k});
  index* to = out.mutable_data();
  const index groups = sizes.size();
  without_gil(1, [&](Work& work) {
    for (index b = 0; b < groups; ++b) {
      std::vector<index> subset = random_subset(n[b], k, seed, static_cast<std::uint32_t>(b), work);
      sort_subset(subset, n[b], work);
      to = std::copy(subset.begin(), subset.end(), to);
    }
  });
  return out;
}

py::tuple philox_block(PhiloxCounter counter, PhiloxKey key) {
  const PhiloxCounter r = philox(counter, key);
  return py::make_tuple(r[0], r[1], r[2], r[3]);
}

py::dict build_info() {
  py::dict info;
#if defined(PYFAST_THREADS_STD)
  info["threads"] = "std";
#else
  info["threads"] = "omp";
#endif
  info["simd"] = simd::kernels().level;
  info["compiler"] = __VERSION__;
  return info;
}

}  // namespace

void bind_support(py::module_& m) {
  m.def("first_invalid", &first_invalid, py::arg("array"), py::arg("nonnegative"),
        "Flat position of the first NaN, infinite or (if asked) negative value; -1 if none.");
  m.def("first_asymmetric", &first_asymmetric_groups, py::arg("distances"), py::arg("offsets"),
        "Flat position of the first distance far from its mirror image; -1 if none.");
  m.def("random_subsets", &random_subsets, py::arg("sizes"), py::arg("k"), py::arg("seed"),
        "k distinct numbers below sizes[b] for each b, ascending: (B, k).");
  m.def(
      "philox",
      [](const std::array<std::uint32_t, 4>& counter, const std::array<std::uint32_t, 2>& key) {
        return philox_block(counter, key);
      },
      py::arg("counter"), py::arg("key"), "One Philox4x32-10 block: four uint32 words.");
  m.def("openmp_threads", &runtime_threads,
        "How many threads OpenMP takes here by default; 0 if this build has none.");
  m.def("build_info", &build_info, "How this extension was built, and the SIMD level in use.");
}

}  // namespace pyfast::bind
