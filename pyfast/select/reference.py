"""The selectors as slow, readable numpy: one group at a time, costs summed afresh for every swap.

The native core is held to these in the tests. Nothing here is optimised or checks its input.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Smallest relative gain that counts as an improvement.
IMPROVEMENT = 1e-12

# Candidates whose v^T H^-1 v is within this fraction of the largest tie.
LOGDET_TIE = 1e-10
# Cosines this close are equal: parallel rows differ by rounding.
SAME_COSINE = 1e-12

# Philox counter words that keep the streams of different uses apart.
SUBSET, KMEANS, HARD_PREFERENCE, APLP = 1, 2, 3, 4


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., SC 2011): four uint32 words for a counter and a key."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (p1 >> 32) ^ c[1] ^ k[0],
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c[3] ^ k[1],
            p0 & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0], c[1], c[2], c[3]


class Random:
    """The i-th draw of one stream, for one purpose, under a 64-bit seed."""

    def __init__(self, seed: int, purpose: int, stream: int) -> None:
        self.key = (seed & 0xFFFFFFFF, seed >> 32)
        self.purpose, self.stream, self.draws = purpose, stream, 0

    def _next(self) -> tuple[int, int, int, int]:
        block = philox((self.draws, self.stream, self.purpose, 0), self.key)
        self.draws += 1
        return block

    def below(self, n: int) -> int:
        """Uniform integer in [0, n): the top 32 bits of (64 random bits) * n / 2^32."""
        r = self._next()
        return (r[0] * n + ((r[1] * n) >> 32)) >> 32

    def uniform(self) -> float:
        """Uniform number in [0, 1) with 53 random bits."""
        r = self._next()
        return float((r[0] << 21) ^ (r[1] >> 11)) * 2.0**-53


def random_subset(n: int, k: int, seed: int, stream: int = 0) -> list[int]:
    """Draw k distinct numbers below n in the order drawn (partial Fisher-Yates shuffle)."""
    random = Random(seed, SUBSET, stream)
    numbers = list(range(n))
    for i in range(k):
        j = i + random.below(n - i)
        numbers[i], numbers[j] = numbers[j], numbers[i]
    return numbers[:k]


def euclidean_distances(X: Floats, Y: Floats | None = None) -> Floats:
    """D[i, j] = ||x_i - y_j||_2, Y = X by default; of differences divided by the largest."""
    X = np.asarray(X, np.float64)
    Y = X if Y is None else np.asarray(Y, np.float64)
    D = np.empty((len(X), len(Y)))
    for i, x in enumerate(X):
        differences = np.abs(Y - x)
        largest = differences.max(axis=1)
        exponent = np.frexp(np.where(largest > 0, largest, 1.0))[1]  # a power of two is exact
        scaled = np.ldexp(differences, -exponent[:, None])
        D[i] = np.ldexp(np.sqrt((scaled**2).sum(axis=1)), exponent)
    return D


def cost(D: Floats, weights: Floats, medoids: list[int]) -> float:
    """sum_i w_i min_{j in medoids} D[i, j] (AMPO, eq. 8)."""
    return float(weights @ D[:, medoids].min(axis=1))


def labels(D: Floats, medoids: list[int]) -> list[int]:
    """Position of each point's nearest medoid, the lowest of equals; of a medoid its own."""
    nearest = [int(j) for j in D[:, medoids].argmin(axis=1)]
    return [medoids.index(i) if i in medoids else j for i, j in enumerate(nearest)]


def kmedoids_optimum(D: Floats, weights: Floats, k: int) -> float:
    """Lowest cost over all subsets of k points."""
    return min(cost(D, weights, list(s)) for s in combinations(range(D.shape[1]), k))


def greedy_start(D: Floats, weights: Floats, k: int) -> list[int]:
    """BUILD: add the point that lowers the cost most, k times."""
    chosen: list[int] = []
    for _ in range(k):
        rest = [j for j in range(D.shape[1]) if j not in chosen]
        costs = [cost(D, weights, [*chosen, j]) for j in rest]
        chosen.append(rest[int(np.argmin(costs))])
    return chosen


def kmedoids_best(D: Floats, weights: Floats, start: list[int]) -> list[list[int]]:
    """All sets that best-swap search visits from `start`, each ascending (AMPO, Appendix E).

    Of equal swaps the first in ascending order; the paper's code goes through a Python set.
    """
    visited = [sorted(start)]
    while True:
        now = visited[-1]
        now_cost = cost(D, weights, now)
        best, best_gain = None, IMPROVEMENT * now_cost
        for out in now:
            for new in range(D.shape[1]):
                if new not in now:
                    swapped = [j for j in now if j != out] + [new]
                    gain = now_cost - cost(D, weights, swapped)
                    if gain > best_gain:
                        best, best_gain = sorted(swapped), gain
        if best is None:
            return visited
        visited.append(best)


def kmedoids_eager(D: Floats, weights: Floats, start: list[int]) -> list[int]:
    """FasterPAM: for each candidate in turn the best medoid to replace, swapped at once."""
    slots, n, unchanged, new = list(start), D.shape[1], 0, 0
    while unchanged < n:
        unchanged += 1
        if new not in slots:
            now_cost = cost(D, weights, slots)
            changes = [
                cost(D, weights, [*slots[:s], new, *slots[s + 1 :]]) - now_cost
                for s in range(len(slots))
            ]
            s = int(np.argmin(changes))
            if -changes[s] > IMPROVEMENT * now_cost:
                slots[s], unchanged = new, 1
        new = (new + 1) % n
    return sorted(slots)


def reward_weights(rewards: Floats, points: list[int], reward_scale: str = "minmax") -> Floats:
    """w_i = exp(mean(r) - r_i) over `points`, r scaled to [0, 1] over the group (AMPO, eq. 6)."""
    spread = rewards.max() - rewards.min()
    if reward_scale == "none":
        scaled = np.asarray(rewards, np.float64)
    else:
        scaled = (rewards - rewards.min()) / spread if spread > 0 else np.full(len(rewards), 0.5)
    return np.asarray(np.exp(scaled[points].mean() - scaled[points]))


def opt_select(
    embeddings: Floats,
    rewards: Floats,
    start: list[int],
    search: str = "best",
    reward_scale: str = "minmax",
    cover_top: bool = False,
) -> tuple[int, list[int]]:
    """AMPO Opt-Select from one start (positions in the pool): (positive, negatives).

    With `cover_top` the positive is a point that costs and weighs, but no candidate.
    """
    positive = int(np.argmax(rewards))
    pool = [i for i in range(len(rewards)) if i != positive]
    points = [*pool, positive] if cover_top else pool
    D = euclidean_distances(embeddings[points])
    D = D / (D.max() or 1.0)
    D = D[:, : len(pool)]
    weights = reward_weights(rewards, points, reward_scale)
    if search == "best":
        medoids = kmedoids_best(D, weights, start)[-1]
    else:
        medoids = kmedoids_eager(D, weights, start)
    return positive, [pool[j] for j in medoids]


def kmeans(X: Floats, k: int, seed: int = 0, run: int = 0, max_iter: int = 300) -> list[int]:
    """Labels of Lloyd's k-means from a greedy k-means++ start; every cluster has a member."""
    random = Random(seed, KMEANS, run)
    n = len(X)
    centres = [X[random.below(n)]]
    nearest = ((X - centres[0]) ** 2).sum(axis=1)
    for _ in range(1, k):
        trials = []
        for _ in range(2 + int(np.log(k))):
            left = random.uniform() * nearest.sum() - np.cumsum(nearest)
            passed = np.flatnonzero((left < 0) & (nearest > 0))
            drawn = int(passed[0]) if len(passed) else int(np.flatnonzero([*nearest, 1])[0] % n)
            trials.append((drawn, np.minimum(nearest, ((X - X[drawn]) ** 2).sum(axis=1))))
        best = int(np.argmin([t[1].sum() for t in trials]))
        centres.append(X[trials[best][0]])
        nearest = trials[best][1]

    labels = np.full(n, -1)
    for _ in range(max_iter):
        squared = np.stack([((X - c) ** 2).sum(axis=1) for c in centres], axis=1)
        new = squared.argmin(axis=1)
        own = squared.min(axis=1)
        for c in range(k):
            if not (new == c).any():
                shared = np.array([(new == new[i]).sum() > 1 for i in range(n)])
                farthest = int(np.argmax(np.where(shared, own, -1.0)))
                new[farthest], own[farthest] = c, 0.0
        if (new == labels).all():
            break
        labels = new
        centres = [X[labels == c].mean(axis=0) for c in range(k)]
    return [int(label) for label in labels]


def coreset(embeddings: Floats, rewards: Floats, k: int, seed: int = 0) -> tuple[int, list[int]]:
    """AMPO Coreset: (positive, the lowest-scored response of each cluster of the pool)."""
    positive = int(np.argmax(rewards))
    pool = np.array([i for i in range(len(rewards)) if i != positive])
    if k >= len(pool):
        return positive, [int(i) for i in pool]
    labels = np.array(kmeans(embeddings[pool], k, seed))
    members = [pool[labels == c] for c in range(k)]
    return positive, sorted(int(m[np.argmin(rewards[m])]) for m in members)


def bottom_k(rewards: Floats, k: int, embeddings: Floats | None = None) -> tuple[int, list[int]]:
    """AMPO Bottom-k: (positive, the k lowest, ties by smallest largest cosine, then index)."""
    positive = int(np.argmax(rewards))
    chosen: list[int] = []
    while len(chosen) < min(k, len(rewards) - 1):
        rest = [i for i in range(len(rewards)) if i != positive and i not in chosen]
        tied = [i for i in rest if rewards[i] == min(rewards[rest])]
        least, closest = tied[0], _largest_cosine(embeddings, tied[0], chosen)
        for i in tied[1:]:
            cosine = _largest_cosine(embeddings, i, chosen)
            if cosine < closest - SAME_COSINE:
                least, closest = i, cosine
        chosen.append(least)
    return positive, chosen


def _largest_cosine(embeddings: Floats | None, i: int, chosen: list[int]) -> float:
    if embeddings is None or not chosen:
        return 0.0
    return max(_cosine(embeddings[i], embeddings[j]) for j in chosen)


def _cosine(a: Floats, b: Floats) -> float:
    if not (a.any() and b.any()):
        return 0.0
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares that neither overflow nor vanish
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def logdet(
    V: Floats, k: int, gamma: float = 0.1, scale: float = 1.0, chosen: Floats | None = None
) -> tuple[list[int], list[float]]:
    """Greedy log det with H^-1 as a d x d matrix (Sherman-Morrison): (picks, gains).

    `chosen` holds vectors picked before, one per row.
    """
    inverse = np.eye(V.shape[1]) / gamma

    def add(v: Floats) -> None:
        Hv = inverse @ v
        inverse[...] -= np.outer(Hv, Hv) * (scale / (1 + scale * v @ Hv))

    for v in [] if chosen is None else chosen:
        add(v)
    picks: list[int] = []
    gains: list[float] = []
    for _ in range(k):
        values = np.array([scale * v @ inverse @ v for v in V])
        values[picks] = -1.0
        pick = int(np.argmax(values >= max(values.max(), 0.0) * (1 - LOGDET_TIE)))
        picks.append(pick)
        gains.append(float(np.log1p(values[pick])))
        add(V[pick])
    return picks, gains


def logdet_exact(
    V: Floats, k: int, gamma: float = 0.1, scale: float = 1.0, chosen: Floats | None = None
) -> tuple[list[int], list[float]]:
    """Greedy log det in rational numbers, each gain rounded once: for small problems, of any scale.

    ``L D L^T = (gamma / scale) I + W W^T`` grows with every w chosen; z = L^{-1} W v and
    rho = v^T v - sum_q z_q^2 / D_q of every candidate v, which adds log(1 + rho scale / gamma).
    """
    from fractions import Fraction

    ridge = Fraction(gamma) / Fraction(scale)
    old = [] if chosen is None else [[Fraction(float(x)) for x in w] for w in chosen]
    vectors = old + [[Fraction(float(x)) for x in v] for v in V]
    rho = [sum((x * x for x in v), Fraction(0)) for v in vectors]
    z: list[list[Fraction]] = [[] for _ in vectors]
    pivots: list[Fraction] = []
    order: list[int] = []
    gains: list[float] = []
    for step in range(len(old) + k):
        if step < len(old):
            pick = step
        else:
            rest = [i for i in range(len(old), len(vectors)) if i not in order]
            enough = max(rho[i] for i in rest) * (1 - Fraction(LOGDET_TIE))
            pick = next(i for i in rest if rho[i] >= enough)
            gains.append(float(np.log1p(float(rho[pick] / ridge))))
        order.append(pick)
        pivots.append(ridge + rho[pick])
        row = [z[pick][q] / pivots[q] for q in range(step)]
        for i, v in enumerate(vectors):
            if i not in order:
                entry = sum((x * y for x, y in zip(v, vectors[pick], strict=True)), Fraction(0))
                entry -= sum((z[i][q] * row[q] for q in range(step)), Fraction(0))
                z[i].append(entry)
                rho[i] -= entry * entry / pivots[-1]
    return [i - len(old) for i in order[len(old) :]], gains


def logdet_value(V: Floats, gamma: float = 0.1, scale: float = 1.0) -> float:
    """Return log det(gamma I + scale sum_i v_i v_i^T) over all rows of V, from the matrix."""
    return float(np.linalg.slogdet(gamma * np.eye(V.shape[1]) + scale * V.T @ V)[1])


def mass_dpo_vectors(
    features: Floats, policy: Floats, ref: Floats, preferred: int, beta: float
) -> tuple[list[int], Floats, float]:
    """MASS-DPO, Algorithm 1, lines 2-4, with eq. 8: (pool, its v_i, Z)."""
    pool = [i for i in range(len(features)) if i != preferred]
    phi = features[pool] - features[preferred]
    log_ratio = policy - ref
    s = beta * (log_ratio[pool] - log_ratio[preferred])
    top = s.max()  # no exponential overflows
    total = np.exp(s - top).sum()
    Z = -float(top + np.log(total))
    p = np.exp(s - top) / total
    return pool, np.sqrt(p)[:, None] * (phi - p @ phi), Z


def mass_dpo_information(
    features: Floats, policy: Floats, ref: Floats, preferred: int, beta: float, curvature: str
) -> tuple[list[int], Floats, float]:
    """MASS-DPO, eq. 11: (pool, its v_i, what every v_i v_i^T counts)."""
    pool, v, Z = mass_dpo_vectors(features, policy, ref, preferred, beta)
    if curvature == "unit":
        return pool, v, 1.0
    return pool, v, beta**2 / (1 + float(np.exp(Z)))


def mass_dpo(
    features: Floats,
    policy: Floats,
    ref: Floats,
    preferred: int = 0,
    k: int = 3,
    beta: float = 0.1,
    gamma: float = 0.1,
    curvature: str = "unit",
) -> list[int]:
    """MASS-DPO, Algorithm 1: negatives in the order of choice."""
    pool, v, scale = mass_dpo_information(features, policy, ref, preferred, beta, curvature)
    return [pool[j] for j in logdet(v, k, gamma, scale)[0]]


def pair_vectors(sketches: Floats, pairs: list[tuple[int, int]], normalize: str | None) -> Floats:
    """ActiveDPO's phi of each pair, shape (P, d)."""

    def unit(v: Floats) -> Floats:
        return v / (np.linalg.norm(v) or 1.0)

    g = [unit(row) if normalize == "response" else row for row in sketches]
    phi = [g[a] - g[b] for a, b in pairs]
    return np.array([unit(v) if normalize == "pair" else v for v in phi])


def active_dpo(
    sketches: Floats,
    pairs: list[tuple[int, int]],
    k: int,
    chosen: Floats | None = None,
    normalize: str | None = "response",
    lam: float = 1.0,
) -> list[int]:
    """ActiveDPO, eq. 3-4, after the phi in `chosen`; APO with embeddings and normalize=None."""
    return logdet(pair_vectors(sketches, pairs, normalize), k, lam, 1.0, chosen)[0]


def aplp(
    entropies: Floats,
    rewards: Floats,
    k: int,
    shortlist: int,
    prompts: list[int],
    one: bool = False,
    seed: int = 0,
) -> list[int]:
    """APLP: whole prompts by entropy, then k pairs by |r(y_a) - r(y_b)|; ties in random order."""
    of_pairs, of_prompts = (Random(seed, APLP, stream) for stream in (0, 1))
    pair_keys = [of_pairs.uniform() for _ in prompts]
    prompt_keys = {prompt: of_prompts.uniform() for prompt in dict.fromkeys(prompts)}
    entropy = {prompt: float(e) for prompt, e in zip(prompts, entropies, strict=True)}
    margins = [abs(float(r[0]) - float(r[1])) for r in rewards]
    kept: list[int] = []
    for prompt in sorted(entropy, key=lambda p: (-entropy[p], prompt_keys[p])):
        if len(kept) >= shortlist:
            break
        own = [i for i in range(len(prompts)) if prompts[i] == prompt]
        own.sort(key=lambda i: (-margins[i], pair_keys[i]))
        kept += own[:1] if one else own
    return sorted(kept, key=lambda i: (-margins[i], pair_keys[i]))[:k]


def hard_preference(
    rewards: Floats,
    gamma: float,
    draws: int,
    seed: int = 0,
    stream: int = 0,
    keep_ties: bool = False,
) -> tuple[Floats, list[int]]:
    """HPS, eq. 9: (q, draws from it with replacement), the first best response being preferred."""
    best = int(np.argmax(rewards))
    q = np.exp(gamma * (rewards - rewards.mean()))
    for i in range(len(q)):
        if i == best or (rewards[i] == rewards[best] and not keep_ties):
            q[i] = 0.0
    q /= q.sum()
    random = Random(seed, HARD_PREFERENCE, stream)
    return q, [int(np.argmax(np.cumsum(q) > random.uniform() * q.sum())) for _ in range(draws)]
