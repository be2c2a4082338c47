// Copies of rows that an interrupt can end: new memory may come at a second a gigabyte.
#pragma once

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"
#include "core/views.hpp"

namespace pyfast {

// The rows named, one after another.
template <class T>
std::vector<T> gather(MatrixView<T> x, const std::vector<index>& rows, Token& token) {
  std::vector<T> out;
  resize(out, static_cast<index>(rows.size()) * x.cols, token);
  T* to = out.data();
  for (const index i : rows) {
    token.spend(x.cols);
    to = std::copy(x.row(i), x.row(i) + x.cols, to);
  }
  return out;
}

// All rows, as numbers of another type.
template <class To, class T>
std::vector<To> converted(MatrixView<T> x, Token& token) {
  std::vector<To> out;
  resize(out, x.rows * x.cols, token);
  To* to = out.data();
  for (index i = 0; i < x.rows; ++i) {
    token.spend(x.cols);
    to = std::copy(x.row(i), x.row(i) + x.cols, to);
  }
  return out;
}

template <class T>
std::vector<double> widen(MatrixView<T> x, Token& token) {
  return converted<double>(x, token);
}

}  // namespace pyfast
