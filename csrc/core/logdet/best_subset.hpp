// The k vectors whose information matrix has the largest determinant, of all subsets: for few.
#pragma once

#include "core/logdet/candidates.hpp"
#include "core/run/work.hpp"

namespace pyfast {

// Subsets whose log det(I + c / gamma sum v v^T) is within this fraction of each other tie; the
// first in lexicographic order wins.
constexpr double kSubsetTie = 1e-10;

// The subset S of k candidates, ascending in `picks`, with the largest log det(gamma I + c sum over
// S and `before` of v v^T). Depth first over the prefixes of subsets, each a partial Cholesky
// factorisation that its extensions share, with enough digits (wide_residuals.hpp). Throws
// std::range_error if a squared length, times c / gamma, overflows or is not a number.
void best_subset(const Candidates& candidates, index k, double gamma, double scale,
                 MatrixView<double> before, index* picks, Work& work);

}  // namespace pyfast
