"""Losses and the language-model head on the CPU: ``python benchmarks/bench_losses.py``.

About three minutes. One thread, and the processor time of this process, in which the load of other
programs does not count. "MB" is what a fresh process grows by at its peak during one call; what it
returns is part of it. The head's limit is the time of its two products alone (who makes the logits
anew in backward needs three). The extremes are checked against torch's logsumexp in float64.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy and torch load their BLAS

import torch  # noqa: E402
from harness import Case, optional, report  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import logsigmoid  # noqa: E402

from pyfast import losses  # noqa: E402

Outcome = tuple[Tensor, Tensor]  # value, and gradient in the first input
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of log-probs, reference log-probs, rewards


def compare(ours: Outcome, theirs: Outcome, tolerance: float) -> str:
    """Say how far value and gradient are apart, of their largest number."""
    worst = 0.0
    for found, expected in zip(ours, theirs, strict=True):
        scale = float(expected.abs().max()) or 1.0
        worst = max(worst, float((found - expected).abs().max()) / scale)
    assert worst <= tolerance, worst
    return f"within {worst:.0e}"


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


HEAD = f"head H={WIDTH} V={VOCABULARY}, {SEQUENCES * SCORED} of {SEQUENCES * LENGTH} tokens"
PEERS = {"trl_trainer": 10, "trl_selective": None, "plain": 5, "plain_scored": None}
MOST_MEGABYTES = 30


def head_cases() -> list[Case]:
    """Return the head beside TRL's ways and torch's own: time, answer, peak memory of each."""
    inputs = HeadInputs()
    ours_grew = extra_megabytes("tiled")

    def case(peer: str, target: float | None) -> Case:
        def check(ours: Outcome, theirs: Outcome) -> str:
            grew = f"{ours_grew:.0f} MB (<= {MOST_MEGABYTES}), peer {extra_megabytes(peer):.0f} MB"
            return f"{compare(ours, theirs, 1e-4)}; {grew}"

        return Case(
            HEAD,
            unit="step",
            items=1,
            ours=lambda: inputs.outcome(inputs.tiled),
            theirs=lambda: inputs.outcome(getattr(inputs, peer)),
            peer=peer,
            check=check,
            target_ratio=target,
            least=("two products", inputs.products),
            clock=time.process_time,
        )

    present = optional("trl") is not None
    return [case(*peer) for peer in PEERS.items() if present or not peer[0].startswith("trl")]


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

BETA = 0.1


def s_dpo(policy: Tensor, ref: Tensor, _: Tensor) -> Tensor:
    """S-DPO's formula as it is written, which overflows at gaps of 89 / beta."""
    gaps = (policy - ref)[:, 1:] - (policy - ref)[:, :1]
    return -logsigmoid(-(BETA * gaps).exp().sum(1).log()).mean()


def dpo(policy: Tensor, ref: Tensor, _: Tensor) -> Tensor:
    """DPO's formula."""
    scores = BETA * (policy - ref)
    return -logsigmoid(scores[:, 0] - scores[:, 1]).mean()


def ranking(policy: Tensor, ref: Tensor, _: Tensor) -> Tensor:
    """Listwise Plackett-Luce by torch's own scan."""
    scores = BETA * (policy - ref)
    return (scores.flip(1).logcumsumexp(1).flip(1) - scores).sum(1).mean()


def swepo(policy: Tensor, ref: Tensor, rewards: Tensor) -> Tensor:
    """SWEPO's formula."""
    scores = BETA * (policy - ref) + rewards
    rest = rewards <= rewards.mean(1, keepdim=True)
    best = scores.masked_fill(rest, -torch.inf)
    return (scores.logsumexp(1) - best.logsumexp(1)).mean()


FORMULAS: dict[str, Loss] = {
    "dpo": dpo,
    "plackett_luce_top1": s_dpo,
    "swepo": swepo,
    "plackett_luce": ranking,
}


def ours(name: str, **arguments: str) -> Loss:
    """One of our losses, as a function of log-probs, reference log-probs and rewards."""
    loss = getattr(losses, name)
    if name == "swepo":
        return lambda p, q, r: loss(p, q, r, beta=BETA, **arguments)
    return lambda p, q, _: loss(p, q, beta=BETA, **arguments)


def step(
    loss: Loss, inputs: tuple[Tensor, Tensor, Tensor], calls: int = 1
) -> Callable[[], Outcome]:
    """Return a call that takes value and gradient in the policy's log-probs, `calls` times."""

    def run() -> Outcome:
        for _ in range(calls):
            leaf = inputs[0].clone().requires_grad_()
            value = loss(leaf, *inputs[1:])
            value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    return run


def group_cases(name: str, groups: int, size: int) -> list[Case]:
    """Return a loss beside our reference, which has to be slower, and its formula unchecked."""
    torch.manual_seed(0)
    ref = -40 + 5 * torch.randn(groups, size)
    inputs = (ref + torch.randn(groups, size), ref, torch.rand(groups, size))
    calls = max(2, 100_000 // (400 + groups * size))
    return [
        Case(
            f"{name} {groups} x {size}",
            unit="step",
            items=calls,
            ours=step(ours(name), inputs, calls),
            theirs=step(theirs, inputs, calls),
            peer=peer,
            check=lambda found, expected: compare(found, expected, 1e-5),
            target_ratio=target,
            clock=time.process_time,
        )
        for peer, theirs, target in (
            ("our reference", ours(name, backend="reference"), 1),
            ("formula, unchecked", FORMULAS[name], None),
        )
    ]


def ragged_case() -> Case:
    """Return rankings of which one is far longer than the others, beside our reference."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, *[2] * 5000, 300]).cumsum(0)
    ref = -40 + 5 * torch.randn(int(offsets[-1]))
    inputs = (ref + torch.randn(len(ref)), ref, ref)
    how = {"beta": BETA, "offsets": offsets}
    return Case(
        "plackett_luce ragged, 5000 x 2 and 1 x 300",
        unit="step",
        items=2,
        ours=step(lambda p, q, _: losses.plackett_luce(p, q, **how), inputs, 2),
        theirs=step(
            lambda p, q, _: losses.plackett_luce(p, q, backend="reference", **how), inputs, 2
        ),
        peer="our reference",
        check=lambda found, expected: compare(found, expected, 1e-5),
        target_ratio=1,
        clock=time.process_time,
    )


def top1(policy: Tensor, ref: Tensor, _: Tensor) -> Tensor:
    """Plackett-Luce top choice by torch's logsumexp, which no exponential makes overflow."""
    scores = BETA * (policy - ref)
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def extreme_case(name: str, scores: Tensor, overflows: bool) -> Case:
    """Return a loss where exponentials overflow, beside its formula."""
    zeros = torch.zeros_like(scores)
    inputs = (scores / BETA, zeros, zeros)
    truth = step(top1, tuple(x.double() for x in inputs))()
    rounding = 1e-6 + 2 * torch.finfo(scores.dtype).eps * float(scores.abs().max())  # of a score

    def check(found: Outcome, formula: Outcome) -> str:
        finite = all(bool(torch.isfinite(x).all()) for x in formula)
        assert finite is not overflows
        said = f"the formula gives {formula[0]:.4g}" + " and NaN" * bool(formula[1].isnan().any())
        return f"{compare(found, truth, rounding)} of float64; {said}"

    return Case(
        f"extremes: {name}",
        unit="step",
        items=20,
        ours=step(ours("plackett_luce_top1"), inputs, 20),
        theirs=step(s_dpo, inputs, 20),
        peer="S-DPO's formula",
        check=check,
        clock=time.process_time,
    )


def extreme_cases() -> list[Case]:
    """Gaps at which the formula holds, fails, and fails by far; groups of up to 1000; all equal."""
    wild = 1e4 * (2 * torch.rand(64, 1000, generator=torch.Generator().manual_seed(0)) - 1)
    return [
        extreme_case("a gap of 88", torch.tensor([[0.0, 88.0]]), False),
        extreme_case("a gap of 89", torch.tensor([[0.0, 89.0]]), True),
        extreme_case("gaps of 1e4", torch.tensor([[0.0, 1e4, -1e4], [1e4, 0.0, 0.0]]), True),
        extreme_case("64 x 1000, scores to 1e4", wild, True),
        extreme_case("64 x 1000, all equal", torch.full((64, 1000), -7.5), False),
    ]


# Running ------------------------------------------------------------------------------------


def main() -> None:
    """Run all cases, or measure one side's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--only", default="", help="a word in the names of the cases to run")
    parser.add_argument("--measure", choices=("tiled", *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        measure(options.measure)
        return
    cases = head_cases() if options.only in HEAD else []
    for name in FORMULAS:
        for groups, size in ((1, 8), (64, 8), (512, 32), (4096, 32)):
            cases += group_cases(name, groups, 2 if name == "dpo" else size)
    cases += [ragged_case(), *extreme_cases()]
    report([case for case in cases if options.only in case.name], options.out, "losses")


if __name__ == "__main__":
    main()
