// The shortest way in for the plainest call: one small group, unit weights. Python's checks of
// meaning would take ten times as long as the search. They are made here, and whatever is not
// plain and right comes back as None: then the long way finds the words for what is wrong.

#include <optional>

#include "bind/args.hpp"
#include "core/distance/check.hpp"
#include "core/kmedoids/scaled.hpp"
#include "simd/simd.hpp"

namespace pyfast::bind {

namespace {

using Init = KMedoidsOptions::Init;

bool is_text(py::handle value, const char* text) {
  return PyUnicode_CheckExact(value.ptr()) != 0 &&
         PyUnicode_CompareWithASCIIString(value.ptr(), text) == 0;
}

// A Python int (not a bool, nor anything that only acts like one) that fits 64 unsigned bits.
std::optional<std::uint64_t> plain_int(py::handle value) {
  if (PyLong_CheckExact(value.ptr()) == 0) return std::nullopt;
  const std::uint64_t number = PyLong_AsUnsignedLongLong(value.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return std::nullopt;
  }
  return number;
}

template <class T>
bool plain_array(const py::array& array, int rank) {
  return array.ndim() == rank && py::isinstance<py::array_t<T>>(array) &&
         (array.flags() & py::array::c_style) != 0 &&
         (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}

bool distinct_below(const index* values, index count, index n) {
  char seen[kSmall] = {};
  for (index i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= n || seen[values[i]]++ != 0) return false;
  }
  return true;
}

// False if something is not plain.
bool read_options(py::handle search, py::handle init, py::handle n_init, py::handle seed, index k,
                  index n, KMedoidsOptions& options) {
  const auto starts = plain_int(n_init), number = plain_int(seed);
  if (!starts || *starts < 1 || *starts > 1'000'000 || !number) return false;
  options.n_init = static_cast<index>(*starts);
  options.seed = *number;
  if (!is_text(search, "eager") && !is_text(search, "best")) return false;
  options.search = is_text(search, "best") ? Search::best : Search::eager;
  if (is_text(init, "random")) return true;
  if (is_text(init, "greedy")) {
    options.init = Init::greedy;
    return true;
  }
  if (!py::isinstance<py::array>(init)) return false;
  const auto given = py::reinterpret_borrow<py::array>(init);
  if (!plain_array<index>(given, 1) || given.shape(0) != k) return false;
  options.init = Init::given;
  options.given = static_cast<const index*>(given.data());
  return distinct_below(options.given, k, n);
}

template <class T>
bool valid(const T* data, index count, bool nonnegative) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return simd::kernels().valid_f32(data, count, nonnegative);
  } else {
    return simd::kernels().valid_f64(data, count, nonnegative);
  }
}

template <class T>
py::object solve_one(const py::array& array, index k, bool precomputed,
                     const KMedoidsOptions& options) {
  const index n = array.shape(0), d = array.shape(1);
  const T* data = static_cast<const T*>(array.data());
  Work checking;
  if (!valid(data, n * d, precomputed)) return py::none();
  if (precomputed && (d != n || first_asymmetric(data, n, checking) >= 0)) return py::none();

  py::array_t<index> medoids(k), labels(n);
  index *to_medoids = medoids.mutable_data(), *to_labels = labels.mutable_data();
  KMedoidsSolution solution;
  without_gil(1, [&](Work& work) {
    const std::vector<double> weights(static_cast<std::size_t>(n), 1.0);
    const MatrixView<T> view{data, n, d};
    solution = precomputed ? solve_distances(view, weights.data(), k, options, work, to_labels)
                           : solve_points(view, weights.data(), k, options, work, to_labels);
  });
  std::copy(solution.medoids.begin(), solution.medoids.end(), to_medoids);
  return py::make_tuple(std::move(medoids), std::move(labels), solution.cost, solution.swaps,
                        solution.passes);
}

py::object kmedoids_plain(const py::array& X, py::handle k, py::handle metric, py::handle search,
                          py::handle init, py::handle n_init, py::handle seed) {
  constexpr index kMostNumbers = 1 << 20;  // read under the GIL; an interrupt waits for that
  if (X.ndim() != 2 || X.shape(0) > kSmall || X.size() == 0) return py::none();
  if (X.size() > kMostNumbers) return py::none();
  const index n = X.shape(0);
  const auto count = plain_int(k);
  const bool precomputed = is_text(metric, "precomputed");
  if (!count || *count < 1 || *count > static_cast<std::uint64_t>(n)) return py::none();
  if (!precomputed && !is_text(metric, "euclidean")) return py::none();
  KMedoidsOptions options;
  const auto medoids = static_cast<index>(*count);
  if (!read_options(search, init, n_init, seed, medoids, n, options)) return py::none();
  if (plain_array<double>(X, 2)) return solve_one<double>(X, medoids, precomputed, options);
  if (plain_array<float>(X, 2)) return solve_one<float>(X, medoids, precomputed, options);
  return py::none();
}

}  // namespace

void bind_plain(py::module_& m) {
  m.def("kmedoids_plain", &kmedoids_plain, py::arg("X"), py::arg("k"), py::arg("metric"),
        py::arg("search"), py::arg("init"), py::arg("n_init"), py::arg("seed"),
        "One group of at most 128 points or their distances: (medoids (k,), labels (n,), cost, "
        "swaps, passes); None unless all arguments are plain and right.");
}

}  // namespace pyfast::bind
