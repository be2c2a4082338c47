#include "bind/args.hpp"
#include "core/sketch/sketch.hpp"

namespace pyfast::bind {

namespace {

// Checks the sketches and where vectors of `columns` numbers go; returns the sketches' numbers.
index checked_dim(const py::array& out, index rows, index columns, index first_stripe) {
  checked<float>(out, "out", 2);
  const index dim = out.shape(1);
  if (!out.writeable() || out.shape(0) != rows) {
    throw py::type_error("out: expected a writeable array with the rows of data");
  }
  check_range(dim, "out's columns", kSmallestSketch, kLargestSketch);
  if ((dim & (dim - 1)) != 0) throw py::type_error("out's columns: expected a power of two");
  // The number of a stripe is one 32-bit word of a counter.
  const index stripes = columns / dim + 1, most = index{1} << 32;
  check_range(first_stripe, "first_stripe", 0, most - std::min(stripes, most));
  if (first_stripe % kChunkStripes != 0) {
    throw py::type_error("first_stripe: expected a multiple of " + std::to_string(kChunkStripes));
  }
  return dim;
}

StripeAddress address_of(std::uint64_t seed, std::uint32_t module, index first_stripe) {
  return {{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
          module,
          first_stripe};
}

void sketch_add(const py::array& data, py::array& out, std::uint64_t seed, std::uint32_t module,
                index first_stripe, int threads) {
  const float* v = checked<float>(data, "data", 2);
  const index dim = checked_dim(out, data.shape(0), data.shape(1), first_stripe);
  check_range(threads, "threads", 1, kMostThreads);
  const StripeAddress address = address_of(seed, module, first_stripe);
  float* y = static_cast<float*>(out.mutable_data());
  without_gil(threads, [&](Work& work) {
    add_sketch({v, data.shape(0), data.shape(1)}, dim, address, y, work);
  });
}

Factors checked_factors(const py::array& wide, const py::array& narrow) {
  const float* left = checked<float>(wide, "wide", 3);
  const float* right = checked<float>(narrow, "narrow", 3);
  if (narrow.shape(0) != wide.shape(0) || narrow.shape(1) != wide.shape(1)) {
    throw py::type_error("narrow: expected the responses and tokens of wide");
  }
  // Numbers of an empty array are not bounded by memory.
  constexpr index most = index{1} << 31;
  for (int i = 0; i < 3; ++i) check_range(wide.shape(i), "wide's shape", 0, most);
  check_range(narrow.shape(2), "narrow's columns", 0, most);
  return {left, right, wide.shape(0), wide.shape(1), wide.shape(2), narrow.shape(2)};
}

py::array_t<double> sketch_add_products(const py::array& wide, const py::array& narrow,
                                        py::array& out, std::uint64_t seed, std::uint32_t module,
                                        int threads) {
  const Factors factors = checked_factors(wide, narrow);
  const index dim = checked_dim(out, factors.responses, factors.size * factors.rank, 0);
  check_range(threads, "threads", 1, kMostThreads);
  py::array_t<double> norms(factors.responses);
  float* y = static_cast<float*>(out.mutable_data());
  double* squares = norms.mutable_data();
  without_gil(threads, [&](Work& work) {
    add_sketch(factors, dim, address_of(seed, module, 0), y, squares, work);
  });
  return norms;
}

void products(const py::array& wide, const py::array& narrow, py::array& out, int threads) {
  const Factors factors = checked_factors(wide, narrow);
  checked<float>(out, "out", 3);
  if (!out.writeable() || out.shape(0) != factors.responses || out.shape(1) != factors.size ||
      out.shape(2) != factors.rank) {
    throw py::type_error("out: expected a writeable array (responses, size, rank)");
  }
  check_range(threads, "threads", 1, kMostThreads);
  float* to = static_cast<float*>(out.mutable_data());
  without_gil(threads, [&](Work& work) { multiply(factors, to, work); });
}

}  // namespace

void bind_sketch(py::module_& m) {
  m.def("sketch_add", &sketch_add, py::arg("data"), py::arg("out"), py::arg("seed"),
        py::arg("module"), py::arg("first_stripe"), py::arg("threads"),
        "Adds the XOR-stripes sketch of each row of data (B, n) to out (B, K), in place.");
  m.def("sketch_add_products", &sketch_add_products, py::arg("wide"), py::arg("narrow"),
        py::arg("out"), py::arg("seed"), py::arg("module"), py::arg("threads"),
        "Adds the XOR-stripes sketch of each sum_t wide[b, t] narrow[b, t]^T, from wide (B, T, d) "
        "and narrow (B, T, r), to out (B, K), in place; returns the sums of their squares (B,).");
  m.def("products", &products, py::arg("wide"), py::arg("narrow"), py::arg("out"),
        py::arg("threads"), "Writes each sum_t wide[b, t] narrow[b, t]^T to out (B, d, r).");
}

}  // namespace pyfast::bind
