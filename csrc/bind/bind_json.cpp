#include "bind/args.hpp"
#include "core/json/vectors.hpp"

namespace pyfast::bind {

namespace {

// Values (n, width), vectors of each line, and the lines without the field; None if they are not
// plain.
py::object json_vectors(const py::bytes& lines, const std::string& name) {
  const std::string_view text = lines;  // the caller's reference keeps it alive
  JsonVectors found;
  bool plain = false;
  without_gil(1, [&](Work& work) { plain = read_vectors(text, name, found, work); });
  if (!plain) return py::none();
  auto kept = std::make_unique<std::vector<float>>(std::move(found.values));
  const float* data = kept->data();
  const index width = std::max<index>(found.width, 1);
  const index rows = static_cast<index>(kept->size()) / width;
  const py::capsule owner(kept.release(),
                          [](void* p) { delete static_cast<std::vector<float>*>(p); });
  return py::make_tuple(py::array_t<float>({rows, width}, data, owner), to_array(found.counts),
                        py::bytes(found.rest));
}

}  // namespace

void bind_json(py::module_& m) {
  m.def("json_vectors", &json_vectors, py::arg("lines"), py::arg("name"));
}

}  // namespace pyfast::bind
