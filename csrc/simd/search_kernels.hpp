// The kernels of the swap search on small groups. A part of kernels.hpp, which includes it where it
// stands: inside the unnamed namespace of one instruction set, so it has no includes of its own.

bool narrow(const double* const* x, index rows, index d, const double* centre, float* out,
            index out_stride) {
  int inexact = 0;
  for (index i = 0; i < rows && (centre != nullptr || inexact == 0); ++i) {
    const double* __restrict row = x[i];
    float* __restrict to = out + i * out_stride;
    if (centre == nullptr) {
      for (index t = 0; t < d; ++t) {
        to[t] = static_cast<float>(row[t]);
        inexact |= static_cast<double>(to[t]) != row[t];
      }
    } else {
      for (index t = 0; t < d; ++t) to[t] = static_cast<float>(row[t] - centre[t]);
    }
    for (index t = d; t < out_stride; ++t) to[t] = 0;
  }
  return inexact == 0;
}

inline Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
inline Doubles smaller(Doubles a, Doubles b) {
#if defined(__AVX512F__)
  return _mm512_min_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

// The largest of Count numbers, which are halved down to two.
template <int Count>
struct Largest {
  typedef float Vector __attribute__((vector_size(Count * sizeof(float))));
  static float of(Vector v) {
    typedef float Half __attribute__((vector_size(Count / 2 * sizeof(float))));
    struct Both {
      Half low, high;
    } both;
    __builtin_memcpy(&both, &v, sizeof both);
    return Largest<Count / 2>::of(both.low > both.high ? both.low : both.high);
  }
};
template <>
struct Largest<2> {
  typedef float Vector __attribute__((vector_size(2 * sizeof(float))));
  static float of(Vector v) { return v[0] > v[1] ? v[0] : v[1]; }
};

bool roots(float* squares, index n, index stride, float* row_largest) {
  constexpr int per_part = Lanes<float>::per_part;
  typedef std::int32_t Ints __attribute__((vector_size(PYFAST_VECTOR_BYTES)));
  Ints zeros{}, good = ~Ints{};
  for (index i = 0; i < n; ++i) {
    float* row = squares + i * stride;
    Floats most{};
    for (index j = 0; j < stride; j += per_part) {
      const Floats v = load(row + j, 0.0f);
      const Ints zero = v == Floats{};
      zeros -= zero;
      good &= zero | ((v >= 1e-28f) & (v <= 1e37f));  // not of NaN
      const Floats length = root(v);
      most = length > most ? length : most;
      store(row + j, length);
    }
    row_largest[i] = Largest<per_part>::of(most);
  }
  index expected = n + n * (stride - n);
  bool all_good = true;
  for (int l = 0; l < per_part; ++l) {
    expected -= zeros[l];
    all_good = all_good && good[l] != 0;
  }
  return all_good && expected == 0;
}

// What points i .. end - 1 add to the costs of the candidates that fill Wide registers: to every
// slot's (`joined`), and to their own slot's.
template <int Wide, class T>
inline void add_points(const SwapCosts<T>& in, index i, index end, index from,
                       typename VectorOf<T>::type* joined, T* costs) {
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  const bool far = in.points > kSwapRun;  // no hardware foresees the way down a column
  for (; i < end; ++i) {
    const Vector weight = in.weights[i] - Vector{};
    const Vector first = in.first[i] - Vector{};
    const Vector second = in.second[i] - Vector{};
    const T* to = in.to + i * in.stride + from;
    T* of_slot = costs + in.slots[i] * in.stride + from;
    for (int p = 0; far && p < Wide; ++p) __builtin_prefetch(to + (Wide + p) * per_part);
    for (int p = 0; p < Wide; ++p) {
      const Vector d = load(to + p * per_part, T{});
      const Vector with = smaller(d, first);
      joined[p] += weight * with;
      store(of_slot + p * per_part,
            load(of_slot + p * per_part, T{}) + weight * (smaller(d, second) - with));
    }
  }
}

// The costs of the candidates that fill Wide registers, and the least of them, from the sums over
// all points: those of the own slots in `costs`, the others in `least`.
template <int Wide, class T>
inline typename VectorOf<T>::type finish_costs(const SwapCosts<T>& in, index from, T* costs,
                                               T* least) {
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  Vector joined[Wide];
  for (int p = 0; p < Wide; ++p) joined[p] = load(least + from + p * per_part, T{});
  Vector smallest[Wide];
  for (int p = 0; p < Wide; ++p) smallest[p] = T(__builtin_huge_val()) - Vector{};
  for (index s = 0; s < in.k; ++s) {
    for (int p = 0; p < Wide; ++p) {
      T* at = costs + s * in.stride + from + p * per_part;
      const Vector cost = load(at, T{}) + joined[p];
      store(at, cost);
      smallest[p] = smaller(cost, smallest[p]);
    }
  }
  Vector lowest = T(__builtin_huge_val()) - Vector{};
  for (int p = 0; p < Wide; ++p) {
    smallest[p] += load(in.barrier + from + p * per_part, T{});
    store(least + from + p * per_part, smallest[p]);
    lowest = smaller(smallest[p], lowest);
  }
  return lowest;
}

// What the points of the run from i on add to them; the least of the costs after the last run.
template <int Wide, class T>
inline typename VectorOf<T>::type add_run(const SwapCosts<T>& in, index i, index from, T* costs,
                                          T* least) {
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  const index end = i + kSwapRun < in.points ? i + kSwapRun : in.points;
  T* const sums = i == 0 ? costs : in.runs;
  for (index s = 0; s < in.k; ++s) {
    for (int p = 0; p < Wide; ++p) store(sums + s * in.stride + from + p * per_part, Vector{});
  }
  Vector joined[Wide];
  for (int p = 0; p < Wide; ++p) joined[p] = Vector{};
  add_points<Wide>(in, i, end, from, joined, sums);
  for (int p = 0; p < Wide; ++p) {
    T* const at = least + from + p * per_part;
    store(at, i == 0 ? joined[p] : load(at, T{}) + joined[p]);
  }
  for (index s = 0; s < in.k && i > 0; ++s) {
    for (int p = 0; p < Wide; ++p) {
      const index at = s * in.stride + from + p * per_part;
      store(costs + at, load(costs + at, T{}) + load(sums + at, T{}));
    }
  }
  if (end < in.points) return T(__builtin_huge_val()) - Vector{};
  return finish_costs<Wide>(in, from, costs, least);
}

// The same by slots: as long as the points are those of one slot, all sums stay in registers. The
// weights come first, so that what the own slot's sum has too much is taken off once a slot.
constexpr int kSlotWide = PYFAST_VECTOR_BYTES == 64 ? 8 : 4;

template <int Wide, class T>
inline void add_slot(const SwapCosts<T>& in, const std::int32_t* points, const std::int32_t* end,
                     index from, bool fresh, typename VectorOf<T>::type* joined, T* own) {
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  Vector with_first[Wide], with_second[Wide];
  for (int p = 0; p < Wide; ++p) with_first[p] = with_second[p] = Vector{};
  for (; points < end; ++points) {
    const index i = *points;
    const Vector weight = in.weights[i] - Vector{};
    const Vector first = weight * in.first[i], second = weight * in.second[i];
    const T* to = in.to + i * in.stride + from;
    for (int p = 0; p < Wide; ++p) {
      const Vector d = weight * load(to + p * per_part, T{});
      with_first[p] += smaller(d, first);
      with_second[p] += smaller(d, second);
    }
  }
  for (int p = 0; p < Wide; ++p) {
    T* const at = own + p * per_part;
    const Vector more = with_second[p] - with_first[p];
    store(at, fresh ? more : load(at, T{}) + more);
    joined[p] += with_first[p];
  }
}

template <int Wide, class T>
inline void add_run_by_slot(const SwapCosts<T>& in, index i, index from, T* costs, T* least) {
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  const std::int32_t* starts = in.starts + i / kSwapRun * (in.k + 1);
  Vector joined[Wide];
  for (int p = 0; p < Wide; ++p) joined[p] = Vector{};
  for (index s = 0; s < in.k; ++s) {
    add_slot<Wide>(in, in.by_slot + starts[s], in.by_slot + starts[s + 1], from, i == 0, joined,
                   costs + s * in.stride + from);
  }
  for (int p = 0; p < Wide; ++p) {
    T* const at = least + from + p * per_part;
    store(at, i == 0 ? joined[p] : load(at, T{}) + joined[p]);
  }
}

template <class T>
inline typename VectorOf<T>::type costs_by_slot(const SwapCosts<T>& in, index from, index count,
                                                T* costs, T* least) {
  constexpr index width = Lanes<T>::count, wide = kSlotWide * Lanes<T>::per_part;
  const index end = from + count;
  for (index i = 0; i < in.points; i += kSwapRun) {
    index c = from;
    for (; c + wide <= end; c += wide) add_run_by_slot<kSlotWide>(in, i, c, costs, least);
    for (; c < end; c += width) add_run_by_slot<kParts>(in, i, c, costs, least);
  }
  auto lowest = T(__builtin_huge_val()) - typename VectorOf<T>::type{};
  for (index c = from; c < end; c += width) {
    lowest = smaller(finish_costs<kParts>(in, c, costs, least), lowest);
  }
  return lowest;
}

// Run by run, whose rows stay in the second-level cache and in the table of pages while all
// candidates pass by.
template <class T>
inline typename VectorOf<T>::type costs_in_order(const SwapCosts<T>& in, index from, index count,
                                                 T* costs, T* least) {
  constexpr index width = Lanes<T>::count, wide = kSlotWide * Lanes<T>::per_part;
  const index end = from + count;
  auto lowest = T(__builtin_huge_val()) - typename VectorOf<T>::type{};
  for (index i = 0; i < in.points; i += kSwapRun) {
    index c = from;
    for (; in.points > kSwapRun && c + wide <= end; c += wide) {
      lowest = smaller(add_run<kSlotWide>(in, i, c, costs, least), lowest);
    }
    for (; c + 2 * width <= end; c += 2 * width) {
      lowest = smaller(add_run<2 * kParts>(in, i, c, costs, least), lowest);
    }
    for (; c < end; c += width) lowest = smaller(add_run<kParts>(in, i, c, costs, least), lowest);
  }
  return lowest;
}

template <class T>
T swap_costs(const SwapCosts<T>& problem, index from, index count, T* costs, T* least) {
  const SwapCosts<T> in = problem;  // a copy that no store can change
  const auto lowest = in.by_slot != nullptr ? costs_by_slot(in, from, count, costs, least)
                                            : costs_in_order(in, from, count, costs, least);
  T all = lowest[0];
  for (int l = 1; l < Lanes<T>::per_part; ++l) all = lowest[l] < all ? lowest[l] : all;
  return all;
}

template <class T>
NearestSums<T> nearest(const Nearest<T>& problem) {
  const Nearest<T> in = problem;  // a copy that no store below can change
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  Lanes<T> first_sums, second_sums;
  for (int p = 0; p < kParts; ++p) first_sums.part[p] = second_sums.part[p] = Vector{};
  for (index i = 0; i < in.points; i += Lanes<T>::count) {
    T slots[Lanes<T>::count];
    for (int p = 0; p < kParts; ++p) {
      const index at = i + p * per_part;
      Vector first = load(in.rows + in.medoids[0] * in.stride + at, T{});
      Vector second = T(__builtin_huge_val()) - Vector{}, slot{};
      for (index s = 1; s < in.k; ++s) {
        const Vector d = load(in.rows + in.medoids[s] * in.stride + at, T{});
        const auto closer = d < first;
        const Vector other = closer ? first : d;
        second = smaller(other, second);
        first = closer ? d : first;
        slot = closer ? static_cast<T>(s) - Vector{} : slot;
      }
      store(in.first + at, first);
      store(in.second + at, second);
      store(slots + p * per_part, slot);
      const Vector weights = load(in.weights + at, T{});
      first_sums.part[p] += weights * first;
      second_sums.part[p] += weights * second;
    }
    for (int c = 0; c < Lanes<T>::count; ++c) in.slots[i + c] = static_cast<std::int32_t>(slots[c]);
  }
  return {tree(fold(first_sums)), tree(fold(second_sums))};
}

// Bit c is set if d[c] < limits[c], for as many numbers as a register holds.
inline unsigned compare(const float* d, const float* limits) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(load(d, 0.0f), load(limits, 0.0f), _CMP_LT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(
      _mm256_movemask_ps(_mm256_cmp_ps(load(d, 0.0f), load(limits, 0.0f), _CMP_LT_OQ)));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps(_mm_cmplt_ps(load(d, 0.0f), load(limits, 0.0f))));
#else
  unsigned bits = 0;
  for (int c = 0; c < Lanes<float>::per_part; ++c) bits |= unsigned{d[c] < limits[c]} << c;
  return bits;
#endif
}
inline unsigned compare(const double* d, const double* limits) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(load(d, 0.0), load(limits, 0.0), _CMP_LT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(
      _mm256_movemask_pd(_mm256_cmp_pd(load(d, 0.0), load(limits, 0.0), _CMP_LT_OQ)));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_pd(_mm_cmplt_pd(load(d, 0.0), load(limits, 0.0))));
#else
  unsigned bits = 0;
  for (int c = 0; c < Lanes<double>::per_part; ++c) bits |= unsigned{d[c] < limits[c]} << c;
  return bits;
#endif
}

template <class T>
index below(const T* d, const T* limits, index count, std::int32_t* places) {
  constexpr index width = Lanes<T>::per_part;
  index found = 0, i = 0;
  for (; i + width <= count; i += width) {
    for (unsigned bits = compare(d + i, limits + i); bits != 0; bits &= bits - 1) {
      places[found++] = static_cast<std::int32_t>(i + __builtin_ctz(bits));
    }
  }
  for (; i < count; ++i) {
    if (d[i] < limits[i]) places[found++] = static_cast<std::int32_t>(i);
  }
  return found;
}

template <class T>
bool valid(const T* x, index count, bool nonnegative) {
  int bad = 0;
  if (nonnegative) {
    for (index i = 0; i < count; ++i) bad |= !(x[i] >= 0) | !(x[i] - x[i] == 0);
  } else {
    for (index i = 0; i < count; ++i) bad |= !(x[i] - x[i] == 0);  // NaN for NaN and infinity
  }
  return bad == 0;
}
