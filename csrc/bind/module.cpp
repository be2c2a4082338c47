#include "bind/args.hpp"

// The extension keeps no state of its own, so it needs no GIL to protect it.
PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Native core of pyfast. Call it through pyfast.select, which checks meaning.";
  pyfast::bind::bind_certificate(m);
  pyfast::bind::bind_kmedoids(m);
  pyfast::bind::bind_groups(m);
  pyfast::bind::bind_json(m);
  pyfast::bind::bind_logdet(m);
  pyfast::bind::bind_plain(m);
  pyfast::bind::bind_sketch(m);
  pyfast::bind::bind_support(m);
}
