"""Losses and the language-model head on the CPU: answers checked first, then timed beside peers.

Usage: python benchmarks/bench_losses.py [--out FOLDER] [--repeats N]
Writes losses.json and losses.md. One thread, and the processor time of this process, in which the
load of other programs does not count; the least of several repeats, all sides in turn. "extra MB"
is what a fresh process grows by at its peak during one call. The head's limit is the time of its
two products alone (whoever makes the logits anew in backward needs three), from the same run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy and torch load their BLAS

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import logsigmoid  # noqa: E402

from pyfast import losses  # noqa: E402

Outcome = tuple[Tensor, Tensor]  # value, and gradient in the first input


@dataclass(frozen=True)
class Peer:
    """Another way to the same numbers, and the ratio of times to reach (None: none was set)."""

    name: str
    run: Callable[[], Outcome]
    target: float | None = None


@dataclass(frozen=True)
class Case:
    """Something to time: `ours` and the peers return value and gradient, which are compared."""

    name: str
    ours: Callable[[], Outcome]
    peers: list[Peer]
    limit: Callable[[], object] | None = None
    tolerance: float = 1e-4
    calls: int = 1
    memory: bool = False


# The head -----------------------------------------------------------------------------------

SEQUENCES, LENGTH, SCORED, WIDTH, VOCABULARY = 8, 96, 32, 576, 49152


class HeadInputs:
    """Hidden states of a batch of responses behind their prompts, and a frozen head."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(SEQUENCES, LENGTH, WIDTH)
        self.weight = 0.05 * torch.randn(VOCABULARY, WIDTH)
        self.labels = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH))
        self.mask = torch.zeros(SEQUENCES, LENGTH, dtype=torch.bool)
        self.mask[:, -SCORED:] = True

    def outcome(self, logps: Callable[[Tensor], Tensor]) -> Outcome:
        """Forward and backward of the sum, as one step of training does it."""
        hidden = self.hidden.clone().requires_grad_()
        value = logps(hidden)
        value.sum().backward()
        assert hidden.grad is not None
        return value.detach(), hidden.grad

    def tiled(self, hidden: Tensor) -> Tensor:
        """Ours."""
        return losses.sequence_logps(hidden, self.weight, self.labels, self.mask)

    def plain(self, hidden: Tensor) -> Tensor:
        """log_softmax and gather over all tokens."""
        logps = (hidden @ self.weight.t()).log_softmax(-1)
        found = logps.gather(-1, self.labels[..., None]).squeeze(-1)
        return (found * self.mask).sum(-1)

    def plain_scored(self, hidden: Tensor) -> Tensor:
        """log_softmax and gather over the scored tokens alone."""
        logps = (hidden[self.mask] @ self.weight.t()).log_softmax(-1)
        found = logps.gather(-1, self.labels[self.mask][:, None]).squeeze(-1)
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, found).sum(-1)

    def trl_selective(self, hidden: Tensor) -> Tensor:
        """TRL's selective_log_softmax over all tokens."""
        from trl.trainer.utils import selective_log_softmax

        found = selective_log_softmax(hidden @ self.weight.t(), self.labels)
        return (found * self.mask).sum(-1)

    def trl_trainer(self, hidden: Tensor) -> Tensor:
        """Run TRL's DPO trainer's chunked head: over all tokens on the CPU, with its metrics."""
        from trl.kernels import ChunkedLogProbFunction

        found = ChunkedLogProbFunction.apply(
            hidden.reshape(-1, WIDTH),
            self.weight,
            None,
            self.labels.reshape(-1),
            1.0,
            32768,
            None,
            1.0,
            ("entropy", "mean_logits", "is_top1"),
        )[0]
        return (found.view(self.mask.shape) * self.mask).sum(-1)

    def products(self) -> None:
        """Make the two products that the scored tokens need, and nothing else."""
        rows = self.hidden[self.mask]
        tile, total = torch.empty(len(rows), 2048), torch.zeros(len(rows), WIDTH)
        for words in self.weight.split(2048):
            torch.mm(rows, words.t(), out=tile)
            total.addmm_(tile, words)


HEADS = ("tiled", "trl_trainer", "trl_selective", "plain", "plain_scored")


def head_case() -> Case:
    """Return the head, beside TRL's ways and torch's own."""
    inputs = HeadInputs()

    def runner(name: str) -> Callable[[], Outcome]:
        return lambda: inputs.outcome(getattr(inputs, name))

    return Case(
        f"head H={WIDTH} V={VOCABULARY}, {SEQUENCES * SCORED} of {SEQUENCES * LENGTH} tokens",
        runner("tiled"),
        [
            Peer("trl_trainer", runner("trl_trainer"), 10),
            Peer("trl_selective", runner("trl_selective"), None),
            Peer("plain", runner("plain"), 5),
            Peer("plain_scored", runner("plain_scored"), None),
        ],
        limit=inputs.products,
        memory=True,
    )


def extra_megabytes(name: str) -> float:
    """Growth of a fresh process at the peak of one call, in MB (Linux)."""
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure(name: str) -> None:
    """Print how far the resident set rises during one call; inputs and libraries are there before.

    The gradient that the call returns is part of it.
    """
    inputs = HeadInputs()
    weight, inputs.weight = inputs.weight, inputs.weight[:64]
    labels, inputs.labels = inputs.labels, inputs.labels % 64
    inputs.outcome(getattr(inputs, name))  # loads what a first call loads
    inputs.weight, inputs.labels = weight, labels
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    inputs.outcome(getattr(inputs, name))
    print((resident("VmHWM") - before) / 1e3)


def resident(key: str) -> int:
    """Read a line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


# The group losses ---------------------------------------------------------------------------


def s_dpo(policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """S-DPO's formula as it is written, which overflows at gaps of 89 / beta."""
    gaps = (policy - ref)[:, 1:] - (policy - ref)[:, :1]
    return -logsigmoid(-(beta * gaps).exp().sum(1).log())


def ranking(policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """Listwise Plackett-Luce by torch's own scan."""
    scores = beta * (policy - ref)
    return (scores.flip(1).logcumsumexp(1).flip(1) - scores).sum(1)


def group_case(name: str, groups: int, size: int, calls: int) -> Case:
    """Return a group loss, from log-probs to the gradient in the policy's."""
    torch.manual_seed(0)
    ref = -40 + 5 * torch.randn(groups, size)
    policy = ref + torch.randn(groups, size)
    ours = getattr(losses, name)

    def outcome(loss: Callable[[Tensor], Tensor]) -> Callable[[], Outcome]:
        def run() -> Outcome:
            leaf = policy.clone().requires_grad_()
            value = loss(leaf)
            value.backward()
            assert leaf.grad is not None
            return value.detach(), leaf.grad

        return run

    formula, label = {
        "plackett_luce_top1": (s_dpo, "S-DPO's formula"),
        "plackett_luce": (ranking, "logcumsumexp"),
    }[name]
    return Case(
        f"{name} {groups} x {size}",
        outcome(lambda p: ours(p, ref, beta=0.1)),
        [
            Peer(
                "our reference", outcome(lambda p: ours(p, ref, beta=0.1, backend="reference")), 1
            ),
            Peer(label, outcome(lambda p: formula(p, ref, 0.1).mean()), None),
        ],
        calls=calls,
    )


def least_time(call: Callable[[], object], repeats: int) -> float:
    """Least processor time of `repeats` calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


# Running ------------------------------------------------------------------------------------


def check(case: Case) -> str:
    """Compare values and gradients with every peer's; raise where they differ."""
    value, gradient = case.ours()
    worst = 0.0
    for peer in case.peers:
        for found, expected in zip((value, gradient), peer.run(), strict=True):
            scale = float(expected.abs().max()) or 1.0
            worst = max(worst, float((found - expected).abs().max()) / scale)
    if not worst <= case.tolerance:
        raise AssertionError(f"{case.name}: off by {worst:.1e} of the largest number")
    return f"{worst:.0e}"


def run(case: Case, repeats: int) -> list[dict[str, object]]:
    """Check a case, then time all sides in turn; one row a peer."""
    checked = check(case)
    sides: dict[str, Callable[[], object]] = {"ours": case.ours}
    sides |= {peer.name: peer.run for peer in case.peers}
    if case.limit:
        sides["limit"] = case.limit
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            side()  # warm, after what the others left in the caches
            times[name].append(
                least_time(lambda side=side: [side() for _ in range(case.calls)], 2) / case.calls
            )
    limit = min(times["limit"]) if case.limit else None
    ours = min(times["ours"])
    extra = {name: extra_megabytes(name) for name in HEADS} if case.memory else {}
    return [
        {
            "case": case.name,
            "ours_ms": 1e3 * ours,
            "peer": peer.name,
            "peer_ms": 1e3 * min(times[peer.name]),
            "ratio": min(times[peer.name]) / ours,
            "target": peer.target,
            "times_limit": ours / limit if limit else None,
            "ours_extra_mb": extra.get("tiled"),
            "peer_extra_mb": extra.get(peer.name),
            "off_by": checked,
        }
        for peer in case.peers
    ]


def table(rows: list[dict[str, object]]) -> str:
    """Lay the rows out as Markdown."""

    def cell(value: object, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        "| case | ours ms | peer | peer ms | ratio | target | times limit | extra MB, ours / peer |"
        " off by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = "-" if row["target"] is None else f">= {row['target']:g}x"
        extra = f"{cell(row['ours_extra_mb'], '.0f')} / {cell(row['peer_extra_mb'], '.0f')}"
        lines.append(
            f"| {row['case']} | {row['ours_ms']:.3g} | {row['peer']} | {row['peer_ms']:.3g} "
            f"| {row['ratio']:.2f}x | {target} | {cell(row['times_limit'], '.2f')} | {extra} "
            f"| {row['off_by']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all cases, or measure one side's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=HEADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        measure(options.measure)
        return
    cases = [
        head_case(),
        group_case("plackett_luce_top1", 8, 8, 200),
        group_case("plackett_luce_top1", 4096, 32, 5),
        group_case("plackett_luce", 8, 8, 200),
        group_case("plackett_luce", 4096, 32, 2),
    ]
    rows = [row for case in cases for row in run(case, options.repeats)]
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    (options.out / "losses.json").write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")
    (options.out / "losses.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
