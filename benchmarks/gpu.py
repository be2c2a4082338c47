"""Kernels on a GPU: answers checked first, then timed beside peers and a copy of their bytes.

Usage: python benchmarks/gpu.py [--out FOLDER]
One command for all: gradient sketches (gpu_sketch.py, in a process of its own), the group losses,
the language-model head. It says which peers are missing (trl, liger-kernel, cut-cross-entropy) or
failed, and without a GPU that nothing was timed. With TRITON_INTERPRET=1 it runs the checks alone,
small and on the CPU. Writes gpu.json and gpu.md. Times are medians of CUDA events; "extra MB" is
the peak that one call adds to what was allocated before it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pyfast import losses
from pyfast.losses import fused, reference

Row = dict[str, object]
BETA = 0.1


@dataclass(frozen=True)
class Device:
    """Where it runs, and at which sizes."""

    name: str
    timed: bool
    groups: tuple[int, int]  # how many, of how many responses
    head: tuple[int, int, int, int]  # sequences, tokens of each, width, vocabulary
    dtype: torch.dtype

    @classmethod
    def here(cls) -> "Device | None":
        """Return the GPU; or the CPU at small sizes if Triton interprets; or None."""
        from pyfast.kernels.runtime import interpreting, why_unusable

        if torch.cuda.is_available() and not interpreting():
            return cls("cuda", True, (4096, 32), (16, 512, 4096, 128256), torch.bfloat16)
        if interpreting() and why_unusable() is None:
            return cls("cpu", False, (6, 32), (4, 9, 48, 700), torch.float32)
        return None


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=200, rep=1000, return_mode="median"))


def extra_megabytes(call: Callable[[], object]) -> float:
    """Peak that a call adds to the memory allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def relative(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def installed(distribution: str) -> bool:
    """Say which version of a peer is here, or that it is missing."""
    try:
        print(f"{distribution} {version(distribution)}")
        return True
    except PackageNotFoundError:
        print(f"{distribution} is missing: pip install {distribution}")
        return False


# Group losses -------------------------------------------------------------------------------


def group_rows(device: Device) -> Iterator[Row]:
    """Check both group kernels against float64, then time one launch of each beside a copy."""
    from pyfast.kernels import group_lse

    torch.manual_seed(0)
    for name in ("contrast", "listwise"):
        for dtype in (torch.float32, torch.bfloat16):
            scores = (3 * torch.randn(device.groups)).to(device.name, dtype)
            leaf = scores.double().requires_grad_()
            truth = getattr(reference, name)(leaf)
            (truth_slope,) = torch.autograd.grad(truth.sum(), leaf)
            loss, slope = getattr(group_lse, name)(scores)
            off = max(relative(loss, truth.detach()), relative(slope, truth_slope))
            row: Row = {"case": f"{name} {device.groups[0]} x {device.groups[1]} {dtype}"}
            row["off_by"] = off
            if off > 1e-5:
                raise AssertionError(f"{row['case']}: off by {off:.1e}")
            if device.timed:
                row |= group_times(name, scores, loss, slope)
            yield row


def group_times(name: str, scores: Tensor, loss: Tensor, slope: Tensor) -> Row:
    """Time the kernel, a copy of the bytes it moves, and torch's ways to the same."""
    from pyfast.kernels import group_lse

    moved = sum(x.numel() * x.element_size() for x in (scores, loss, slope))
    source = torch.empty(moved // 2, dtype=torch.uint8, device=scores.device)
    target = torch.empty_like(source)  # half is read, half is written

    def step(loss_of: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        leaf = scores.clone().requires_grad_()
        return lambda: torch.autograd.grad(loss_of(leaf).sum(), leaf)

    judge = getattr(reference, name)
    compiled = torch.compile(judge)
    return {
        "kernel_ms": milliseconds(lambda: getattr(group_lse, name)(scores)),
        "copy_ms": milliseconds(lambda: target.copy_(source)),
        "step_ms": milliseconds(step(getattr(fused, name))),
        "peers_ms": {
            "reference": milliseconds(step(judge)),
            "torch.compile": attempt(lambda: milliseconds(step(compiled))),
        },
    }


def attempt(call: Callable[[], object]) -> object:
    """Return what a peer's call returns, or why it failed: that must not stop the others."""
    from triton.errors import TritonError

    try:
        return call()
    except (ImportError, AttributeError, TypeError) as error:
        why = f"does not fit what is installed: {error}"
    except (ValueError, AssertionError, NotImplementedError) as error:
        why = f"refuses this case: {error}"
    except (RuntimeError, TritonError) as error:  # no memory left, CUDA, torch.compile, Triton
        why = f"{type(error).__name__}: {error}"
    return "FAILED, " + " ".join(why.split())[:160].replace("|", "/")


# The head -----------------------------------------------------------------------------------


class Head:
    """DPO on pairs of sequences through a frozen head; all tokens are scored."""

    def __init__(self, device: Device) -> None:
        torch.manual_seed(0)
        self.sequences, self.length, width, words = device.head
        self.hidden = torch.randn(self.sequences, self.length, width).to(device.name, device.dtype)
        # Logits of standard deviation 2, and labels that the model likes: a trained model's.
        self.weight = (2 * width**-0.5 * torch.randn(words, width)).to(device.name, device.dtype)
        self.labels = torch.randint(0, words, (self.sequences, self.length), device=device.name)

    def dpo(self, logps: Tensor) -> Tensor:
        """Take the first half of the sequences as chosen, the rest as rejected, as Liger does."""
        chosen, rejected = logps.chunk(2)
        return torch.nn.functional.softplus(BETA * (rejected - chosen)).mean()

    def flat(self) -> tuple[Tensor, Tensor]:
        """Lay hidden states and labels out by token."""
        return self.hidden.reshape(-1, self.hidden.shape[-1]), self.labels.reshape(-1)

    def truth(self) -> tuple[Tensor, Tensor]:
        """Compute loss and gradient in float32 from the formulas, a few tokens at a time."""
        rows, labels = self.flat()
        weight, parts = self.weight.float(), range(0, len(rows), 512)
        logps = []
        for i in parts:
            logits = rows[i : i + 512].float() @ weight.t()
            own = logits.gather(1, labels[i : i + 512, None]).squeeze(1)
            logps.append(own - logits.logsumexp(1))
        leaf = torch.cat(logps).view(self.sequences, self.length).requires_grad_()
        loss = self.dpo(leaf.sum(1))
        (outer,) = torch.autograd.grad(loss, leaf)
        outer, slopes = outer.reshape(-1, 1), []
        for i in parts:
            logits = rows[i : i + 512].float() @ weight.t()
            mean = torch.softmax(logits, 1) @ weight
            slopes.append(outer[i : i + 512] * (weight[labels[i : i + 512]] - mean))
        return loss.detach(), torch.cat(slopes).view(self.hidden.shape)

    def step(self, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Forward and backward of one side."""
        leaf = self.hidden.detach().requires_grad_()
        loss = loss_of(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    def ours(self, hidden: Tensor) -> Tensor:
        """Tiles that keep E[W]."""
        backend = "triton"  # on the CPU: the interpreter
        return self.dpo(losses.sequence_logps(hidden, self.weight, self.labels, backend=backend))

    def plain(self, hidden: Tensor) -> Tensor:
        """log_softmax and gather in the dtype of the model."""
        logits = hidden @ self.weight.t()
        logps = torch.log_softmax(logits, -1).gather(-1, self.labels[..., None]).squeeze(-1)
        return self.dpo(logps.float().sum(1))

    def trl(self, hidden: Tensor) -> Tensor:
        """TRL's chunked head, log-probs alone."""
        from trl.kernels import ChunkedLogProbFunction

        logps = ChunkedLogProbFunction.apply(
            hidden.reshape(-1, hidden.shape[-1]),
            self.weight,
            None,
            self.labels.reshape(-1),
            1.0,
            32768,
            None,
            1.0,
            (),
        )[0]
        return self.dpo(logps.view(self.labels.shape).sum(1))

    def cce(self, hidden: Tensor) -> Tensor:
        """Apple's cut cross-entropy."""
        from cut_cross_entropy import linear_cross_entropy

        negative = linear_cross_entropy(hidden, self.weight, self.labels, reduction="none")
        return self.dpo(-negative.float().sum(1))

    def liger(self, hidden: Tensor) -> Tensor:
        """Liger's fused linear DPO."""
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        loss = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False)
        found = loss(self.weight, hidden, self.labels)
        return found[0] if isinstance(found, tuple) else found


def head_rows(device: Device) -> Iterator[Row]:
    """Check ours against float32 by the error rule, then time all sides."""
    head = Head(device)
    loss, gradient = head.truth()
    found, slope = head.step(head.ours)
    same, same_slope = head.step(head.plain)
    off, allowed = relative(slope, gradient), relative(same_slope, gradient)
    if off > allowed + 1e-3 or abs(found - loss) > abs(same - loss) + 1e-3 * abs(loss):
        raise AssertionError(f"head: off by {off:.1e}, {allowed:.1e} allowed; {found} for {loss}")

    sides = {"ours": head.ours, "plain": head.plain, "torch.compile": torch.compile(head.plain)}
    for side, distribution in (
        ("trl", "trl"),
        ("liger", "liger-kernel"),
        ("cce", "cut-cross-entropy"),
    ):
        if installed(distribution):
            sides[side] = getattr(head, side)
    tokens, width, words = head.sequences * head.length, device.head[2], device.head[3]
    for name, side in sides.items():
        row: Row = {"case": f"head {tokens} tokens, H={width} V={words}", "side": name}
        if not device.timed and name == "torch.compile":
            continue
        tried = (lambda call: call()) if name == "ours" else attempt
        row["off_by"] = tried(lambda side=side: relative(head.step(side)[1], gradient))
        if device.timed and isinstance(row["off_by"], float):
            row["ms"] = tried(lambda side=side: milliseconds(lambda: head.step(side)))
            row["extra_mb"] = tried(lambda side=side: extra_megabytes(lambda: head.step(side)))
        yield row
    if device.timed:
        yield products(head)


def products(head: Head) -> Row:
    """Return the limit: the two products alone, as large as they come."""
    rows, _ = head.flat()
    part = head.weight[: 1 << 14]
    shares = rows @ part.t()
    pair = milliseconds(lambda: (rows @ part.t(), shares @ part))
    return {"case": "limit: two products", "ms": pair * len(head.weight) / len(part)}


# Sketches -----------------------------------------------------------------------------------


def sketch_rows(device: Device, out: Path) -> Iterator[Row]:
    """Run gpu_sketch.py, which leaves its memory when it ends, and read what it wrote."""
    script = Path(__file__).with_name("gpu_sketch.py")
    command = [sys.executable, str(script), "--out", str(out)]
    done = subprocess.run(
        command + ["--smoke"] * (not device.timed), stderr=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        print(done.stderr)
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield {"case": "sketch", "FAILED": why.replace("|", "/")}
        return
    found = json.loads((out / "gpu-sketch.json").read_text())
    unit = "seconds, of tiny inputs interpreted" if not device.timed else "seconds"
    for name, row in found.items():
        yield {"case": f"sketch {name} ({unit})", **row}


def table(rows: list[Row]) -> str:
    """Lay rows out as Markdown: a line each, what was measured as name = value."""

    def text(value: object) -> str:
        if value is None:
            return "not installed"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| case | measured |", "|---|---|"]
    for row in rows:
        rest = ", ".join(f"{key} = {text(value)}" for key, value in row.items() if key != "case")
        lines.append(f"| {row['case']} | {rest} |")
    return "\n".join(lines)


def main() -> None:
    """Check, time where there is a GPU, and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    device = Device.here()
    if device is None:
        from pyfast.kernels.runtime import why_unusable

        print(f"nothing was checked or timed: {why_unusable()}")
        for distribution in ("trl", "liger-kernel", "cut-cross-entropy"):
            installed(distribution)
        return
    if device.timed:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    else:
        print("no GPU: checks in Triton's interpreter at small sizes, nothing is timed")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        for row in chain(sketch_rows(device, options.out), group_rows(device), head_rows(device)):
            rows.append(row)
    finally:  # a wrong answer ends the run; what was measured before it stays
        (options.out / "gpu.json").write_text(json.dumps(rows, indent=2, default=str) + "\n")
        (options.out / "gpu.md").write_text(table(rows) + "\n")
        print(table(rows))
    if any("FAILED" in row for row in rows):
        raise SystemExit("gpu_sketch.py failed; all else was measured")


if __name__ == "__main__":
    main()
