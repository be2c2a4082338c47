#include "bind/args.hpp"
#include "core/sketch.hpp"

namespace pyfast::bind {

namespace {

void sketch_add(const py::array& data, py::array& out, std::uint64_t seed, std::uint32_t module,
                index first_stripe, int threads) {
  const float* v = checked<float>(data, "data", 2);
  checked<float>(out, "out", 2);
  const index dim = out.shape(1);
  if (!out.writeable() || out.shape(0) != data.shape(0)) {
    throw py::type_error("out: expected a writeable array with the rows of data");
  }
  check_range(dim, "out's columns", kSmallestSketch, kLargestSketch);
  if ((dim & (dim - 1)) != 0) throw py::type_error("out's columns: expected a power of two");
  check_range(threads, "threads", 1, kMostThreads);
  // The number of a stripe is one 32-bit word of a counter.
  const index stripes = data.shape(1) / dim + 1, most = index{1} << 32;
  check_range(first_stripe, "first_stripe", 0, most - std::min(stripes, most));
  if (first_stripe % kChunkStripes != 0) {
    throw py::type_error("first_stripe: expected a multiple of " + std::to_string(kChunkStripes));
  }
  const StripeAddress address{
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
      module,
      first_stripe};
  float* y = static_cast<float*>(out.mutable_data());
  without_gil([&](Cancel& cancel) {
    add_sketch({v, data.shape(0), data.shape(1)}, dim, address, y, threads, cancel);
  });
}

}  // namespace

void bind_sketch(py::module_& m) {
  m.def("sketch_add", &sketch_add, py::arg("data"), py::arg("out"), py::arg("seed"),
        py::arg("module"), py::arg("first_stripe"), py::arg("threads"),
        "Adds the XOR-stripes sketch of each row of data (B, n) to out (B, K), in place.");
}

}  // namespace pyfast::bind
