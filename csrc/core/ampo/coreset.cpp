// AMPO's Algorithm 2: clusters of the pool, and the lowest reward of each.
#include <algorithm>
#include <stdexcept>

#include "core/ampo/group.hpp"
#include "core/run/memory.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

bool valid(const float* x, index count) { return simd::kernels().valid_f32(x, count, false); }
bool valid(const double* x, index count) { return simd::kernels().valid_f64(x, count, false); }

}  // namespace

template <class T>
GroupSelection coreset(MatrixView<T> embeddings, const double* rewards, index k,
                       const KMeansOptions& options, ExactSquares& workspace, Work& work) {
  const index n = embeddings.rows;
  GroupSelection selection;
  selection.positive = first_highest(rewards, n);
  const std::vector<index> pool = pool_of(n, selection.positive);
  for (index i = 0; i < n; ++i) {
    work.spend(embeddings.cols);
    if (!valid(embeddings.row(i), embeddings.cols)) {
      throw std::range_error("an embedding is not finite");
    }
  }
  if (k >= n - 1) {
    selection.negatives = pool;
    return selection;
  }
  const std::vector<T> x = gather(embeddings, pool, work);
  const KMeansSolution clusters =
      kmeans(MatrixView<T>{x.data(), n - 1, embeddings.cols}, k, options, workspace, work);
  std::vector<index> lowest(static_cast<std::size_t>(k), -1);
  for (std::size_t i = 0; i < pool.size(); ++i) {
    index& low = lowest[clusters.labels[i]];
    if (low < 0 || rewards[pool[i]] < rewards[low]) low = pool[i];
  }
  std::sort(lowest.begin(), lowest.end());
  selection.negatives = std::move(lowest);
  selection.cost = clusters.inertia;
  return selection;
}

template GroupSelection coreset(MatrixView<float>, const double*, index, const KMeansOptions&,
                                ExactSquares&, Work&);
template GroupSelection coreset(MatrixView<double>, const double*, index, const KMeansOptions&,
                                ExactSquares&, Work&);

}  // namespace pyfast
