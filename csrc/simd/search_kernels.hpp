// The kernels of the swap search on small groups. A part of kernels.hpp, which includes it where it
// stands: inside the unnamed namespace of one instruction set, so it has no includes of its own.

template <class T>
void centre(const T* const* x, index rows, index d, float* out, index out_stride) {
  const T* __restrict centre = x[0];
  for (index i = 0; i < rows; ++i) {
    const T* __restrict row = x[i];
    float* __restrict to = out + i * out_stride;
    for (index t = 0; t < d; ++t) to[t] = static_cast<float>(row[t] - centre[t]);
    for (index t = d; t < out_stride; ++t) to[t] = 0;
  }
}

bool lengths(float norm, const float* norms, const float* dots, index count, float share,
             float* out) {
  int bad = 0;
  for (index j = 0; j < count; ++j) {
    const float sum = norm + norms[j];
    const float squared = sum - 2 * dots[j];
    // Written so that NaN counts as bad.
    bad |= !(squared >= share * sum) | !(squared >= 1e-28f) | !(squared <= 1e37f);
    out[j] = __builtin_sqrtf(squared);
  }
  return bad == 0;
}

template <class T>
void swap_costs(const SwapCosts<T>& problem, T* costs, T* least) {
  const SwapCosts<T> in = problem;  // a copy that no store below can change
  typedef typename VectorOf<T>::type Vector;
  constexpr int per_part = Lanes<T>::per_part;
  Vector joined[kParts];
  for (int p = 0; p < kParts; ++p) joined[p] = Vector{};
  for (index c = 0; c < in.k * Lanes<T>::count; ++c) costs[c] = 0;
  for (index i = 0; i < in.points; ++i) {
    const Vector weight = in.weights[i] - Vector{};
    const Vector first = in.first[i] - Vector{};
    const Vector second = in.second[i] - Vector{};
    T* of_slot = costs + in.slots[i] * Lanes<T>::count;
    for (int p = 0; p < kParts; ++p) {
      const Vector d = load(in.to + i * in.stride + p * per_part, T{});
      const Vector with = d < first ? d : first;
      joined[p] += weight * with;
      store(of_slot + p * per_part,
            load(of_slot + p * per_part, T{}) + weight * ((d < second ? d : second) - with));
    }
  }
  Vector smallest[kParts];
  for (int p = 0; p < kParts; ++p) smallest[p] = load(costs + p * per_part, T{}) + joined[p];
  for (index s = 0; s < in.k; ++s) {
    for (int p = 0; p < kParts; ++p) {
      T* at = costs + s * Lanes<T>::count + p * per_part;
      const Vector cost = load(at, T{}) + joined[p];
      store(at, cost);
      smallest[p] = cost < smallest[p] ? cost : smallest[p];
    }
  }
  for (int p = 0; p < kParts; ++p) store(least + p * per_part, smallest[p]);
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
        second = other < second ? other : second;
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
  return {tree(first_sums), tree(second_sums)};
}

float largest(const float* x, index count) {
  Lanes<float> most;
  for (int p = 0; p < kParts; ++p) most.part[p] = Floats{};
  for (index i = 0; i < count; i += Lanes<float>::count) {
    for (int p = 0; p < kParts; ++p) {
      const Floats v = load(x + i + p * Lanes<float>::per_part, 0.0f);
      most.part[p] = v > most.part[p] ? v : most.part[p];
    }
  }
  float all[Lanes<float>::count];
  for (int p = 0; p < kParts; ++p) store(all + p * Lanes<float>::per_part, most.part[p]);
  for (const float v : all) all[0] = v > all[0] ? v : all[0];
  return all[0];
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
