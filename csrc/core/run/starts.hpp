// The best of several starts of a local search.
#pragma once

#include <utility>

#include "core/run/views.hpp"

namespace pyfast {

// run(0), run(1), ...: the one that costs least, the first of equals. At least one.
template <class Cost, class Run>
auto best_of(index starts, Cost&& cost, Run&& run) {
  auto best = run(0);
  for (index start = 1; start < starts; ++start) {
    auto other = run(start);
    if (cost(other) < cost(best)) best = std::move(other);
  }
  return best;
}

}  // namespace pyfast
