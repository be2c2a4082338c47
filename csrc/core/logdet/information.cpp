#include "core/logdet/information.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr double kRoundOff = 0x1.0p-53;
constexpr double kMostError = 1.0 / 16;  // beyond it, squares of errors count
constexpr index kWidth = simd::kPanelWidth;

double roundings(index d) { return 3.125 * static_cast<double>(d) + 16; }

}  // namespace

index InformationMatrix::panels() const { return (d_ + kWidth - 1) / kWidth; }

void InformationMatrix::start(index d, double ridge, Work& work) {
  d_ = d;
  ridge_ = ridge;
  count_ = 0;
  factorised_ = inverted_ = -1;
  kappa_ = static_cast<double>(d);
  const auto room = static_cast<std::size_t>(d * d);
  high_.assign(room, 0.0);
  low_.assign(room, 0.0);
  factor_.resize(room);
  inverse_.resize(room);
  roots_.resize(static_cast<std::size_t>(d));
  panels_.resize(panels(), d * kWidth, work);
  std::fill_n(panels_.row(panels() - 1), d * kWidth, 0.0f);  // rows past the d-th stay so
}

void InformationMatrix::add(const double* w, double length) {
  for (index i = 0; i < d_; ++i) {  // what is above the diagonal
    const index at = i * d_ + i;
    simd::kernels().add_scaled(w[i], w + i, d_ - i, high_.data() + at, low_.data() + at);
  }
  kappa_ += length;
  ++count_;
}

double InformationMatrix::error() const {
  const double error = 1.07 * kRoundOff * (roundings(d_) + 4) * kappa_;
  return error <= kMostError ? error : std::numeric_limits<double>::infinity();
}

void InformationMatrix::factorise() {
  if (factorised_ == count_) return;
  factorised_ = count_;
  for (index s = 0; s < d_; ++s) {
    for (index p = s * d_ + s; p < (s + 1) * d_; ++p) factor_[p] = high_[p] + low_[p];
    factor_[s * d_ + s] += ridge_;
    roots_[s] = std::sqrt(factor_[s * d_ + s]);
  }
  simd::kernels().factorise(factor_.data(), d_);
}

void InformationMatrix::solve(double* v, std::vector<double>& room) const {
  room.resize(static_cast<std::size_t>(d_));
  simd::kernels().forward(factor_.data(), d_, v);
  simd::kernels().backward(factor_.data(), d_, v, room.data());
}

double InformationMatrix::residual(double* v) const {
  simd::kernels().forward(factor_.data(), d_, v);
  double square;
  simd::kernels().squared_norms_f64(v, 1, d_, d_, &square);
  return square;
}

double InformationMatrix::close_error(double* solved, std::vector<double>& room) const {
  room.resize(static_cast<std::size_t>(d_));
  simd::kernels().backward(factor_.data(), d_, solved, room.data());
  double reach = 0, spread = 0;
  for (index s = 0; s < d_; ++s) {
    reach += room[s] * room[s];
    spread += std::abs(solved[s]) * roots_[s];
  }
  return 1.07 * kRoundOff * (roundings(d_) * reach + 4 * spread * spread);
}

// r = -2 y^T z with z = (A / 2 + what is above its diagonal)^T y - v, of which y^T A y is made.
InformationMatrix::Refined InformationMatrix::refined(const double* v,
                                                      std::vector<double>& room) const {
  room.resize(static_cast<std::size_t>(4 * d_));
  double *y = room.data(), *sizes = y + d_, *high = sizes + d_, *low = high + d_;
  std::copy_n(v, d_, y);
  const auto add_scaled = simd::kernels().add_scaled;
  simd::kernels().forward(factor_.data(), d_, y);
  simd::kernels().backward(factor_.data(), d_, y, sizes);
  std::fill_n(low, d_, 0.0);
  for (index i = 0; i < d_; ++i) high[i] = -v[i];
  for (index i = 0; i < d_; ++i) {
    const double *row = high_.data() + i * d_, *rest = low_.data() + i * d_, half = y[i] / 2;
    add_scaled(half, &ridge_, 1, high + i, low + i);
    add_scaled(half, row + i, 1, high + i, low + i);
    low[i] += half * rest[i];
    add_scaled(y[i], row + i + 1, d_ - i - 1, high + i + 1, low + i + 1);
    for (index j = i + 1; j < d_; ++j) low[j] += y[i] * rest[j];
  }
  double sum = 0, rest = 0, reach = 0, spread = 0;
  for (index i = 0; i < d_; ++i) {
    add_scaled(y[i], high + i, 1, &sum, &rest);
    rest += y[i] * low[i];
    reach += sizes[i] * sizes[i];
    spread += std::abs(y[i]) * roots_[i];
  }
  const double residual = -2 * (sum + rest), off = roundings(d_) * std::sqrt(reach) + 4 * spread;
  const double digits = 16 * static_cast<double>(d_ + count_) * spread * spread;
  return {residual, 4 * kRoundOff * std::abs(residual) +
                        1.1 * kRoundOff * kRoundOff * (kappa_ * off * off + digits)};
}

void InformationMatrix::invert() {
  if (inverted_ == count_) return;
  inverted_ = count_;
  factorise();
  simd::kernels().invert(factor_.data(), d_, inverse_.data());
  double squares = 0;
  const double root = std::sqrt(ridge_);  // A / ridge is at least I: all is at most 1
  for (index i = 0; i < d_; ++i) {
    float* panel = panels_.row(i / kWidth) + i % kWidth;
    for (index t = 0; t < d_; ++t) {
      const double entry = root * inverse_[i * d_ + t];
      panel[t * kWidth] = static_cast<float>(entry);
      squares += entry * entry;
    }
  }
  // Roundings of a product on its way to a sum (simd.hpp) and of both its factors, and a little for
  // those of the inverse, which has the digits of a double.
  const double of_products = 264 + static_cast<double>(d_) / 256;
  float_error_ = 1.1 * of_products * 0x1.0p-24 * std::sqrt(squares);
}

void InformationMatrix::prepare(Rows& rows, Work& work) const {
  rows.rows.resize(kTogether, panels() * kWidth, work);
  rows.products.resize(kTogether, panels() * kWidth, work);
  rows.squares.resize(kTogether);
}

void InformationMatrix::bounds(Rows& rows, index count, const double* lengths, double* out) const {
  const index width = panels() * kWidth;
  for (index p = 0; p < panels(); ++p) {  // below the diagonal there are no more numbers
    simd::kernels().panel_dots(rows.rows.row(0), count, width, panels_.row(p), 1, 0,
                               std::min(d_, (p + 1) * kWidth), rows.products.row(0) + p * kWidth,
                               width);
  }
  simd::kernels().squared_norms_f32(rows.products.row(0), count, width, width, rows.squares.data());
  for (index i = 0; i < count; ++i) {
    const double length = std::sqrt(rows.squares[i]) + float_error_ * lengths[i];
    out[i] = length * length / ridge_ * (1 + 1e-6);
  }
}

}  // namespace pyfast
