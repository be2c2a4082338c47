// MASS-DPO's choice of k negatives of one group (Algorithm 1): the greedy log-det selection over
//   v_i = sqrt(p_i) (phi_i - sum_j p_j phi_j),   p = softmax(s),   s_i = beta (h_i - h_*),
// for the group without its preferred response *; h_i is the log-ratio of policy to reference.
// phi_i is the feature of y_i minus that of y_*, which the centring takes out again.
#pragma once

#include <vector>

#include "core/logdet/logdet.hpp"
#include "core/run/views.hpp"

namespace pyfast {

struct MassDpoOptions {
  index k = 3;
  double beta = 0.1;
  double gamma = 0.1;
  bool fisher = false;  // weigh v v^T by beta^2 (1 - sigmoid(Z)) of eq. 11, Z over the pool
};

// Solves one group after another in the same memory: (n - 1) x d numbers in float64 beside those
// of LogDetGreedy.
class MassDpo {
 public:
  // 1 <= k <= n - 1. Picks are positions in the group. Returns the log-determinant. Throws
  // std::range_error if scores, vectors or their squared lengths overflow.
  template <class T>
  double solve(MatrixView<T> features, const double* policy_logps, const double* ref_logps,
               index preferred, const MassDpoOptions& options, const LogDetAnswer& answer,
               Work& work);

 private:
  LogDetGreedy greedy_;
  std::vector<double> weights_, roots_;  // p but for its denominator, and sqrt(p)
  std::vector<double> vectors_;
  std::vector<double> mean_;
};

}  // namespace pyfast
