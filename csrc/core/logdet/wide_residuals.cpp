#include "core/logdet/wide_residuals.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/logdet/wide.hpp"

namespace pyfast {

namespace {

template <int N>
class Residuals final : public WideResiduals {
 public:
  Residuals(const Candidates& candidates, double gamma, double scale)
      : candidates_(candidates),
        ridge_(Wide<N>(gamma) * Wide<N>(scale).inverse()),
        inverse_ridge_(ridge_.inverse()),
        entries_(static_cast<std::size_t>(candidates.count())) {}

  index chosen() const override { return static_cast<index>(chosen_.size()); }

  void choose(const double* vector, Work& work) override {
    Entry entry;
    append({vector, vector + candidates_.dims()}, nullptr, entry, work);
  }

  void choose(index i, Work& work) override {
    append(vector_of(i), candidates_.rest(i), entries_[i], work);
  }

  double residual(index i, Work& work) override {
    Entry& entry = entries_[i];
    if (!entry.started || static_cast<index>(entry.z.size()) < chosen()) {
      const std::vector<double> v = vector_of(i);
      bring_up(entry, {v.data(), candidates_.rest(i), candidates_.dims()}, work);
    }
    return (entry.rho * inverse_ridge_).value();
  }

  void factor_row(index s, double* out) const override {
    for (index q = 0; q < s; ++q) {
      const Wide<N>& ratio = chosen_[s].row[q];  // z_sq / D_q, and u_q^2 = (z_sq / D_q)^2 D_q / t
      const double square = (ratio * ratio * chosen_[q].pivot * inverse_ridge_).value();
      out[q] = ratio.is_negative() ? -std::sqrt(square) : std::sqrt(square);
    }
  }

 private:
  struct Entry {
    bool started = false;
    Wide<N> rho;
    std::vector<Wide<N>> z;  // as far as it is known
  };
  struct Chosen {
    std::vector<double> vector;
    DoubleDoubles numbers;     // of the vector, whose memory stays where it is
    std::vector<Wide<N>> row;  // of L
    Wide<N> pivot, inverse_pivot;
  };

  std::vector<double> vector_of(index i) const {
    std::vector<double> v(static_cast<std::size_t>(candidates_.dims()));
    candidates_.copy(i, v.data());
    return v;
  }

  void bring_up(Entry& entry, const DoubleDoubles& v, Work& work) const {
    const index d = candidates_.dims(), count = chosen();
    work.spend(4 * d);
    if (!entry.started) entry.rho = dot<N>(v, v);
    entry.started = true;
    entry.z.reserve(static_cast<std::size_t>(count));
    for (auto q = static_cast<index>(entry.z.size()); q < count; ++q) {
      work.spend(8 * (d + q * (N + 2)));
      const Chosen& other = chosen_[q];
      Wide<N> z = dot<N>(v, other.numbers);
      for (index j = 0; j < q; ++j) z = z - entry.z[j] * other.row[j];
      entry.z.push_back(z);
      entry.rho = entry.rho - z * z * other.inverse_pivot;
    }
  }

  void append(std::vector<double> vector, const double* rest, Entry& entry, Work& work) {
    const DoubleDoubles numbers(vector.data(), rest, candidates_.dims());
    bring_up(entry, numbers, work);
    std::vector<Wide<N>> row;
    for (index q = 0; q < chosen(); ++q) row.push_back(entry.z[q] * chosen_[q].inverse_pivot);
    const Wide<N> pivot = ridge_ + entry.rho;
    chosen_.push_back({std::move(vector), numbers, std::move(row), pivot, pivot.inverse()});
    entry.z = {};  // it is never asked again
  }

  const Candidates& candidates_;
  const Wide<N> ridge_, inverse_ridge_;
  std::vector<Entry> entries_;
  std::vector<Chosen> chosen_;
};

}  // namespace

std::unique_ptr<WideResiduals> WideResiduals::make(const Candidates& candidates, double gamma,
                                                   double scale, double bits) {
  std::unique_ptr<WideResiduals> made;
  with_words(bits, [&](auto words) {
    made = std::make_unique<Residuals<decltype(words)::value>>(candidates, gamma, scale);
  });
  return made;
}

double wide_length(const double* v, index d, double gamma, double scale) {
  if (!std::all_of(v, v + d, [](double x) { return std::isfinite(x); })) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  const Doubles doubles(v, d);
  return (dot<3>(doubles, doubles) * Wide<3>(scale) * Wide<3>(gamma).inverse()).value();
}

}  // namespace pyfast
