#include "core/distances.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

namespace pyfast {

namespace {

// ||a - b|| from float32 rows whose squares leave the comfortable range of float32: rare (very
// large, very small or equal rows), so plain.
double wide_distance(const float* a, const float* b, index d) {
  double sum = 0;
  for (index t = 0; t < d; ++t) {
    const double difference = static_cast<double>(a[t]) - static_cast<double>(b[t]);
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

double distance(const float* a, const float* b, index d) {
  const float squared = squared_distance(a, b, d);
  const bool comfortable = squared > 1e-28f && squared < 1e37f;
  return comfortable ? std::sqrt(squared) : wide_distance(a, b, d);
}

double distance(const double* a, const double* b, index d) {
  return std::sqrt(squared_distance(a, b, d));
}

}  // namespace

template <class T>
T squared_distance(const T* a, const T* b, index d) {
  constexpr int kLanes = 16;
  T sums[kLanes] = {};
  index t = 0;
  for (; t + kLanes <= d; t += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const T difference = a[t + lane] - b[t + lane];
      sums[lane] += difference * difference;
    }
  }
  for (int lane = 0; t < d; ++t, ++lane) {
    const T difference = a[t] - b[t];
    sums[lane] += difference * difference;
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

template <class T>
void euclidean_distances(MatrixView<T> x, T* out, Token& token) {
  const index n = x.rows;
  for (index i = 0; i < n; ++i) {
    token.spend(i * x.cols);
    out[i * n + i] = T{0};
    for (index j = 0; j < i; ++j) {
      const T d = static_cast<T>(distance(x.row(i), x.row(j), x.cols));
      if (!std::isfinite(d)) {
        throw std::range_error("the distance between points " + std::to_string(j) + " and " +
                               std::to_string(i) + " overflows; scale the points down");
      }
      out[i * n + j] = out[j * n + i] = d;
    }
  }
}

template float squared_distance<float>(const float*, const float*, index);
template double squared_distance<double>(const double*, const double*, index);
template void euclidean_distances<float>(MatrixView<float>, float*, Token&);
template void euclidean_distances<double>(MatrixView<double>, double*, Token&);

}  // namespace pyfast
