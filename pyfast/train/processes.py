"""Several processes of one run: who makes what, and who writes.

Each has the whole model. What a run makes of many things, responses, scores, sketches, gradients,
is shared out; every process gets all of it, and what is chosen of it is chosen by every process
alike, which is checked. The first one alone writes. ``torchrun`` and ``accelerate launch`` start
the processes and say in the environment which one each is; alone, nothing here does anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pyfast.train.errors import DivergedError, ProcessesError, UserError, WaitingError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Made = TypeVar("Made")

_BUCKET = 2**22  # numbers of gradients that are summed at once
_GO_ON = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class _Failure:
    """What a process could not make, as it tells the others."""

    kind: str
    text: str

    def raised(self, rank: int) -> UserError:
        """Return the error that another process raises of it."""
        kinds = (DivergedError, ProcessesError, WaitingError, UserError)
        found = next((kind for kind in kinds if kind.__name__ == self.kind), None)
        if found is not None:
            return found(self.text)
        return ProcessesError(f"process {rank} of the run failed: {self.kind}: {self.text}")


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them.

    Attributes
    ----------
    rank : int
        Which one this is, from 0.
    count : int
        How many there are.
    timeout : int
        Seconds without an answer after which another one counts as lost.
    """

    rank: int = 0
    count: int = 1
    timeout: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def once(self, make: Callable[[], Made]) -> Made:
        """Return to all what the first process makes; the others wait for it.

        An error of the first one is raised in all.
        """
        if self.count == 1:
            return make()
        outcome, error = _tried(make) if self.is_first else (None, None)
        box = [outcome]
        self._call("broadcast_object_list", box, src=0)
        return self._settled(box, error)[0]  # type: ignore[no-any-return]

    def everywhere(self, make: Callable[[], Made]) -> list[Made]:
        """Return to all what each process makes, by rank; an error of one is raised in all."""
        if self.count == 1:
            return [make()]
        outcome, error = _tried(make)
        outcomes: list[Any] = [None] * self.count
        self._call("all_gather_object", outcomes, outcome)
        return self._settled(outcomes, error)

    def split(
        self, items: Sequence[Item], make: Callable[[Sequence[Item]], Sequence[Made]]
    ) -> list[Made]:
        """Share items out; return to all what was made of them, in the order of the items.

        Parameters
        ----------
        items : sequence
            The same ones in every process.
        make : callable
            Of some of the items, returns one value each, which pickle can hold.
        """
        if self.count == 1:
            return list(make(items))
        parts = self.everywhere(lambda: list(make(items[self.rank :: self.count])))
        return [parts[i % self.count][i // self.count] for i in range(len(items))]

    def agree(self, what: str, text: str) -> None:
        """Stop all processes if they do not have the same text.

        Raises
        ------
        ProcessesError
            Naming what differs, and the processes that differ from the first.
        """
        if self.count == 1:
            return
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        digests = self.everywhere(lambda: digest)
        others = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            raise _shared(
                ProcessesError(
                    f"{what}: process {', '.join(others)} of the run has not what process 0 has; "
                    "nothing of it was kept (other machines, versions, threads or files?)"
                )
            )

    def agree_on_weights(self, what: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stop all processes if their tensors are not the same, to the bit."""
        if self.count == 1:
            return
        import torch

        digest = hashlib.sha256()
        for name, value in tensors.items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        self.agree(what, digest.hexdigest())

    def reduce(self, parameters: Sequence[torch.Tensor]) -> None:
        """Give every process the sum of all processes' gradients.

        A parameter that has none in any process keeps none, so that the optimiser leaves it.
        """
        if self.count == 1:
            return
        import torch

        have = torch.tensor([int(parameter.grad is not None) for parameter in parameters])
        self._call("all_reduce", have)
        buckets: dict[Any, list[torch.Tensor]] = {}
        for parameter, holders in zip(parameters, have.tolist(), strict=True):
            if holders == 0:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            key = (parameter.grad.dtype, parameter.grad.device)
            bucket = buckets.setdefault(key, [])
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= _BUCKET:
                self._sum(buckets.pop(key))
        for bucket in buckets.values():
            self._sum(bucket)

    def _sum(self, gradients: list[torch.Tensor]) -> None:
        import torch

        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._call("all_reduce", flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        import torch.distributed

        try:
            getattr(torch.distributed, name)(*arguments, **options)
        except RuntimeError as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ProcessesError(
                f"process {self.rank} of {self.count} has lost another one, which has ended or not "
                f"answered for {self.timeout} s (run.timeout); {_GO_ON} ({text[:200]})"
            ) from error

    def _settled(self, outcomes: list[Any], own: Exception | None) -> list[Any]:
        """Return what was made, or raise the first process's error that had one."""
        for rank, outcome in enumerate(outcomes):
            if isinstance(outcome, _Failure):
                raise _shared(own if rank == self.rank and own else outcome.raised(rank))
        return outcomes


ALONE = Team()


def _tried(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return _Failure(type(error).__name__, str(error)), error


def _shared(error: Exception) -> Exception:
    """Mark an error as one that all processes raise, so that the first alone tells it."""
    error.shared = True  # type: ignore[attr-defined]
    return error


def of_environment(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return rank and count as a launcher has set them; (0, 1) alone.

    Raises
    ------
    UserError
        If they are not numbers that go together.
    """
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and (
            "MASTER_PORT" in environment
        ):
            raise UserError(
                "accelerate launch --cpu starts one process, whatever --num_processes says; on "
                "CPUs torchrun, or accelerate launch --multi_gpu, starts several"
            )
        return 0, 1
    try:
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise UserError(
            "RANK and WORLD_SIZE: expected whole numbers, RANK below WORLD_SIZE, got "
            f"{environment['RANK']!r} and {environment['WORLD_SIZE']!r}"
        )
    return rank, count


def check_accelerate(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what accelerate was asked for, of one process or several, and a run does not do.

    Raises
    ------
    UserError
        Rather than pass over it in silence.
    """
    for name, plain, instead in (
        ("USE_DEEPSPEED", "false", "each process has the whole model; expected no DeepSpeed"),
        ("USE_FSDP", "false", "each process has the whole model; expected no FSDP"),
        ("USE_MEGATRON_LM", "false", "expected no Megatron-LM"),
        ("USE_PARALLELISM_CONFIG", "false", "expected data parallelism alone"),
        ("MIXED_PRECISION", "no", "policy.dtype sets the number type; expected no"),
        ("DYNAMO_BACKEND", "no", "models are not compiled; expected no"),
        (
            "GRADIENT_ACCUMULATION_STEPS",
            "1",
            "optimisation.groups_per_step says how many groups make a step; expected 1",
        ),
    ):
        value = environment.get(f"ACCELERATE_{name}", plain)
        if value.lower() not in (plain, ""):
            raise UserError(f"ACCELERATE_{name}: {instead}, got {value!r}")


@contextlib.contextmanager
def team(settings: Any) -> Iterator[Team]:
    """Give the processes of a run, and join them for as long as it goes on."""
    check_accelerate()
    rank, count = of_environment()
    if count == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as distributed

    backend, device = "gloo", settings.policy.device
    if device in ("auto", "cuda") and torch.cuda.is_available():
        local, there = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
        if local >= there:
            raise UserError(
                f"policy.device: {there} GPUs for {local + 1} processes or more on this machine; "
                "expected one each (or cpu)"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    seconds = settings.run.timeout
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProcessesError(
            f"process {rank} of {count} cannot join the others: {text[:300]}"
        ) from error
    try:
        yield Team(rank, count, seconds)
    finally:
        distributed.destroy_process_group()
