// What every bind_<topic>.cpp needs: arrays checked for dtype, shape and layout, and calls made
// without the GIL that Ctrl-C can stop. Meaning (k <= n, finite values, ...) is Python's to check.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast::bind {

namespace py = pybind11;

// A C-contiguous, aligned array of exactly T with `rank` dimensions, or a TypeError with its name.
// Returns the data; the caller keeps the array alive.
template <class T>
const T* checked(const py::array& array, const char* name, py::ssize_t rank) {
  if (!py::isinstance<py::array_t<T>>(array) || array.ndim() != rank ||
      (array.flags() & py::array::c_style) == 0 ||
      (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    throw py::type_error(std::string(name) + ": expected a C-contiguous " + std::to_string(rank) +
                         "-dimensional array of " +
                         py::str(py::dtype::of<T>()).template cast<std::string>());
  }
  return static_cast<const T*>(array.data());
}

inline bool is_float32(const py::array& array) { return py::isinstance<py::array_t<float>>(array); }

// Offsets of shape (groups + 1,) that ascend from 0, to `total` if that is known.
inline Groups checked_groups(const py::array& offsets, index total = -1) {
  const index* data = checked<index>(offsets, "offsets", 1);
  const index count = offsets.shape(0) - 1;
  if (count < 1 || data[0] != 0 || (total >= 0 && data[count] != total)) {
    throw py::type_error("offsets: expected (groups + 1,) from 0 to " +
                         (total >= 0 ? std::to_string(total) : std::string("the last")));
  }
  for (index b = 1; b <= count; ++b) {
    if (data[b] <= data[b - 1]) throw py::type_error("offsets: expected no empty group");
  }
  return {data, count};
}

// A batch is shared from some milliseconds on: on a busy machine, a thread that is held up in the
// middle of a group holds the call up for as long.
constexpr double kSharedFrom = 10;

// n_b^2 over all groups, times `each`: the operations of a batch, for Work::each().
inline double operations_of_pairs(const Groups& groups, double each) {
  double sum = 0;
  for (index b = 0; b < groups.count; ++b) {
    sum += static_cast<double>(groups.size(b)) * static_cast<double>(groups.size(b));
  }
  return sum * each / kSharedFrom;
}

template <class T>
MatrixView<T> rows_of(const T* data, index d, const Groups& groups, index b) {
  return {data + groups.begin(b) * d, groups.size(b), d};
}

// Where the n_b x n_b distances of each group start.
inline std::vector<index> square_starts(const Groups& groups, index total) {
  std::vector<index> starts{0};
  for (index b = 0; b < groups.count; ++b) {
    starts.push_back(starts.back() + groups.size(b) * groups.size(b));
  }
  if (starts.back() != total) throw py::type_error("D: expected sum of n_b^2 distances");
  return starts;
}

// Python has checked the meaning; these keep what would read or write out of bounds, or break a
// sort's order, from doing so whoever calls.
inline void check_range(index value, const char* name, index low, index high) {
  if (value < low || value > high) {
    throw py::type_error(std::string(name) + ": expected " + std::to_string(low) + " to " +
                         std::to_string(high));
  }
}

constexpr index kMostThreads = 1024;
constexpr index kMostStarts = index{1} << 31;  // of a counter-based stream

inline void check_finite(const double* data, index count, const char* name) {
  for (index i = 0; i < count; ++i) {
    if (!std::isfinite(data[i])) {
      throw py::type_error(std::string(name) + ": expected finite numbers");
    }
  }
}

inline py::array_t<index> new_indices(index count) { return py::array_t<index>(count); }

// Copies a vector of any integer or float into a new array.
template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Calls body(work) without the GIL. Python's signal handlers run now and then (PEP 475's way); if
// one raises, the work stops and its exception, KeyboardInterrupt say, is what the caller sees.
template <class Body>
void without_gil(int threads, Body&& body) {
  Work work(threads, [] {
    const py::gil_scoped_acquire held;
    return PyErr_CheckSignals() != 0;
  });
  try {
    const py::gil_scoped_release released;
    body(work);
  } catch (const Cancelled&) {
    throw py::error_already_set();
  }
}

void bind_certificate(py::module_& m);
void bind_json(py::module_& m);
void bind_kmedoids(py::module_& m);
void bind_groups(py::module_& m);
void bind_logdet(py::module_& m);
void bind_plain(py::module_& m);
void bind_sketch(py::module_& m);
void bind_support(py::module_& m);

}  // namespace pyfast::bind
