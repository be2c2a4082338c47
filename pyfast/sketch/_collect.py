"""`collect`: many responses to a pool, by one process or several, resumed where it stopped."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import overload

from pyfast import _arguments as args
from pyfast._files import locked
from pyfast.sketch._batches import Response, check_list, sizes_of
from pyfast.sketch._collector import LoraGradients
from pyfast.sketch._finish import clear_leftovers, finish, put_in_place
from pyfast.sketch._job import Job
from pyfast.sketch._passes import adopt_pool, adopt_stores, passes_left, sketch_all
from pyfast.sketch._pool import DTYPES, SketchPool
from pyfast.sketch._shards import Work
from pyfast.sketch._store import Store


@overload
def collect(
    collector: LoraGradients,
    responses: Sequence[Response],
    folder: str | Path,
    *,
    max_tokens: int = ...,
    fidelity: int | None = ...,
    resume: bool = ...,
    progress: bool = ...,
    dtype: str = ...,
    base: SketchPool | str | Path | None = ...,
    shard: None = ...,
) -> SketchPool: ...


@overload
def collect(
    collector: LoraGradients,
    responses: Sequence[Response],
    folder: str | Path,
    *,
    max_tokens: int = ...,
    fidelity: int | None = ...,
    resume: bool = ...,
    progress: bool = ...,
    dtype: str = ...,
    base: SketchPool | str | Path | None = ...,
    shard: tuple[int, int],
) -> SketchPool | None: ...


def collect(
    collector: LoraGradients,
    responses: Sequence[Response],
    folder: str | Path,
    *,
    max_tokens: int = 4096,
    fidelity: int | None = None,
    resume: bool = True,
    progress: bool = True,
    dtype: str = "float32",
    base: SketchPool | str | Path | None = None,
    shard: tuple[int, int] | None = None,
) -> SketchPool | None:
    """Sketch many responses into a folder on disk.

    The folder appears when it is complete; until then the work lies beside it, in
    ``.NAME.partial``, and a call that was interrupted goes on where it stopped, to the same bits.
    A pool that is there already and is of these responses and this model is opened; one of the
    first of these responses is extended, without sketching them again.

    Parameters
    ----------
    collector : LoraGradients
        The model and the projection.
    responses : sequence of (prompt_ids, response_ids)
        Lists of token ids; the end token belongs to the response.
    folder : str or Path
        Where the pool goes.
    max_tokens : int
        Tokens of a batch, padding included: the bound on memory, with dim x 4 bytes a response
        of the batch. The pool itself stays on disk. A call that goes on may give fewer, after an
        out-of-memory error say: what is done stays, what is left is cut anew, and its last bits
        are those of its own batches.
    fidelity : int, optional
        How many responses, spread evenly over those that have tokens, to report on; by default 32,
        or what fits into 4 GiB if that is less. Their whole gradients come from the same passes
        and lie beside the pool until it is complete, p x 4 bytes each. 0 for no report, which
        fewer than two responses do not have either. An extended pool keeps its report.
    resume : bool
        Go on with what is left of an interrupted call; False starts anew, once no other process
        is at work, and never touches a finished pool.
    progress : bool
        Show a progress bar (needs tqdm).
    dtype : {"float32", "float16"}
        How rows are stored. float16, with a power of two for each row, takes half the disk and
        adds a relative error of about 2e-4 to a row, far below the projection's own.
    base : SketchPool or path, optional
        A pool of the first of these responses, to be extended into `folder`; by default the one
        at `folder`.
    shard : (rank, world), optional
        Do only rank's share, 0 <= rank < world, of the batches. Whoever ends last puts the pool
        together, bit for bit as one process makes it. A later call without `shard`, or with
        another world, does what is missing.

    Returns
    -------
    SketchPool, or None
        Opened. None from a rank that ends while the share of others is missing; `SketchPool.open`
        says whose.

    Raises
    ------
    ValueError, TypeError
        If a token id is out of range, or what is there belongs to another model, other responses
        or settings: the message names what differs.
    OSError
        If there is no room on the disk, or another process is at work on this pool.

    Warns
    -----
    UserWarning
        If a gradient is exactly zero, or not finite (the row is NaN, which `select.active_dpo`
        refuses; see `SketchPool.flags`), or all are equal; or if rows were damaged on the disk,
        which are made again.
    """
    rank, world = _check_shard(shard)
    if not resume and world > 1:
        raise ValueError(
            "resume: expected True beside shard, or a rank would remove the work of the others; "
            f"call without shard, or remove {Work(Path(folder)).folder} before they start"
        )
    check_list(responses)
    if len(responses) == 0:
        raise ValueError("responses: expected at least one")
    max_tokens = args.check_int(max_tokens, "max_tokens", 1)
    args.check_name(dtype, "dtype", DTYPES)
    sizes = sizes_of(responses, collector.vocabulary)
    job = Job(
        collector, responses, sizes, Path(folder), max_tokens=max_tokens, fidelity=fidelity,
        dtype=dtype, base=base,
    )  # fmt: skip
    job.work.pool.parent.mkdir(parents=True, exist_ok=True)
    if world == 1:
        return _alone(job, resume, progress)
    found = _share(job, rank, world, progress)
    if not isinstance(found, bool):
        return found
    if not found:
        return None
    try:
        return _alone(job, True, progress)
    except BlockingIOError:
        return None  # another rank puts it together


def _check_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(f"shard: expected (rank, world), got {shard!r}")
    world = args.check_int(shard[1], "shard's world", 1)
    return args.check_int(shard[0], "shard's rank", 0, world - 1), world


def _alone(job: Job, resume: bool, progress: bool) -> SketchPool:
    """Do all that is missing, in one process that no other writes beside, and put it in place."""
    with _held(job.work.lock, job.work.pool):
        put_in_place(job.work)  # what was complete when its process was killed
        if not resume:
            if job.work.pool.exists():
                raise ValueError(
                    f"folder: {job.work.pool} is there already, and resume=False removes no "
                    "finished pool; open it with SketchPool.open, or remove it"
                )
            job.work.clear()
        finished = job.settle()
        if finished is None:
            everything = range(len(job.responses))
            info = {**job.info, "share": {"rank": 0, "world": 1, "rows": len(job.responses)}}
            with Store(job.work.store(), info, everything, job.digests) as store:
                if job.base is not None:
                    adopt_pool(store, job.base)
                adopt_stores(job.work, store)
                sketch_all(job, store, passes_left(job, store, store.done, 0, 1), progress)
                finish(job, store)
            put_in_place(job.work)
            finished = SketchPool.open(job.work.pool, verify=False)
        clear_leftovers(job.work, len(finished))
        return finished


def _share(job: Job, rank: int, world: int, progress: bool) -> SketchPool | bool:
    """Do a rank's share; return the pool if it is there, or whether nothing is missing then."""
    work, place = job.work, f"{job.work.pool} as rank {rank} of {world}"
    with ExitStack() as held:
        try:
            held.enter_context(_held(work.lock, work.pool, shared=True))
        except BlockingIOError:
            if work.is_done() or work.is_complete() or work.finished() >= len(job.responses):
                return False  # another rank is putting it together
            raise
        if work.is_complete():
            return True
        finished = job.settle()
        if finished is not None:
            return finished
        work.folder.mkdir(exist_ok=True)
        held.enter_context(_held(work.rank_lock(rank, world), place))
        batches = job.batches()[rank::world]
        rows = [number for batch in batches for number in batch]
        info = {**job.info, "share": {"rank": rank, "world": world, "rows": len(rows)}}
        with Store(work.store(rank, world), info, rows, job.digests) as store:
            job.settle()  # what another rank has written in the meantime
            sketch_all(job, store, passes_left(job, store, work.done(), rank, world), progress)
        return work.is_done()


@contextmanager
def _held(lock: Path, what: Path | str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock, or say who does."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, shared=shared))
        except BlockingIOError:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                "another process is sketching into it; wait until it ends, or give "
                "shard=(rank, world) to all of them to share the work",
                str(what),
            ) from None
        yield
