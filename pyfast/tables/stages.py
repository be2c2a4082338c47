"""Stages from responses to a preference data set: each takes a table and gives one.

They are plain functions of a `pyarrow.Table`, so files (`pyfast.tables.files`), ``datasets``
(``with_format("arrow").map(stage, batched=True)``) and Ray Data (``map_batches(stage,
batch_format="pyarrow")``) call them as they are. A row's result depends on that row alone, whatever
batch it comes in. All other columns are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyfast import _arguments as args
from pyfast import select as selectors
from pyfast.tables import arrays, formats, seeds
from pyfast.tables.records import check_beside
from pyfast.tables.server import Drawn

Sampler = Callable[[list[Any]], Sequence[Drawn]]
Score = Callable[..., Iterable[float]]
Encoder = Callable[[list[str]], NDArray[Any]]

SELECTORS = (
    "opt-select",
    "coreset",
    "bottom-k",
    "random",
    "kmedoids",
    "logdet",
    "hard-preference",
    "mass-dpo",
)
"""`kmedoids` and `logdet` choose among all but the best response, whatever their scores."""

_PER_RESPONSE = ("embeddings", "features", "policy_logps", "ref_logps")
_OF_SAMPLING = ("token_ids", "finish_reasons", "finished")

OF_RESPONSES = ("scores", "positive", "negatives", "valid", *_PER_RESPONSE)
"""The columns of ours that tell of a row's responses, one by one or by their places."""


def sample(table: pa.Table, sampler: Sampler) -> pa.Table:
    """Add responses to every row's prompt: columns ``responses`` and ``finish_reasons``.

    Parameters
    ----------
    table : pyarrow.Table
        With ``prompt`` (string, or list of chat messages). Responses that it has are replaced; what
        tells of those, scores for instance (``OF_RESPONSES``), is refused.
    sampler : callable
        Prompts -> a `Drawn` for each, such as a `pyfast.tables.server.Server`.

    Returns
    -------
    pyarrow.Table
        ``token_ids`` (list of lists of int32) is added too where the sampler tells them.

    Raises
    ------
    ValueError
        If the column is missing, a prompt is empty, a column tells of other responses, or the
        sampler gives something else.
    """
    arrays.check_table(table)
    for name in OF_RESPONSES:
        if name in table.column_names and table[name].null_count < table.num_rows:
            raise ValueError(
                f"{name}: expected no such column beside the prompts: it tells of other responses "
                "than those to be sampled; take it out first"
            )
    prompts = arrays.whole(table, "prompt").to_pylist()
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt: expected a text or messages in row {row}, got {prompt!r}")
    found = list(sampler(prompts)) if prompts else []
    if len(found) != len(prompts):
        raise ValueError(f"sampler: expected {len(prompts)} results, got {len(found)}")
    for row, drawn in enumerate(found):
        counts = {len(drawn.responses), len(drawn.finish_reasons)}
        counts |= {len(drawn.responses if drawn.token_ids is None else drawn.token_ids)}
        if counts == {0} or len(counts) > 1:
            raise ValueError(f"sampler: expected as many of all for row {row}, got {drawn}")
    texts = pa.array([drawn.responses for drawn in found], pa.list_(pa.string()))
    reasons = pa.array([drawn.finish_reasons for drawn in found], pa.list_(pa.string()))
    table = arrays.set_column(table, "responses", texts)
    table = arrays.set_column(table, "finish_reasons", reasons)
    if not found or any(drawn.token_ids is None for drawn in found):
        return table
    tokens = [drawn.token_ids for drawn in found]
    return arrays.set_column(table, "token_ids", pa.array(tokens, pa.list_(pa.list_(pa.int32()))))


def score(table: pa.Table, function: Score, *, name: str = "scores") -> pa.Table:
    """Add the scores of every row's responses.

    Parameters
    ----------
    table : pyarrow.Table
        With ``prompt`` (string) and ``responses`` (list of string).
    function : callable
        ``(prompt, responses) -> scores``, one a response; higher is better.
    name : str
        The new column, a list of float64 a row.

    Returns
    -------
    pyarrow.Table
        The rows as they were, with what is new.

    Raises
    ------
    ValueError
        If a column is missing, or the function gives another number of scores or one that is not
        finite; with the row.
    """
    arrays.check_table(table)
    prompts = arrays.whole(table, "prompt").to_pylist()
    responses = arrays.whole(table, "responses").to_pylist()
    found = []
    for row, (prompt, texts) in enumerate(zip(prompts, responses, strict=True)):
        scores = [float(value) for value in function(prompt, list(texts))]
        if len(scores) != len(texts) or not np.isfinite(scores).all():
            raise ValueError(
                f"function: expected {len(texts)} finite scores for row {row}, got {scores}"
            )
        found.append(scores)
    return arrays.set_column(table, name, pa.array(found, pa.list_(pa.float64())))


def embed(table: pa.Table, encoder: Encoder, *, name: str = "embeddings") -> pa.Table:
    """Add an embedding of every row's responses.

    Parameters
    ----------
    table : pyarrow.Table
        With ``responses`` (list of string).
    encoder : callable
        Texts -> float array (texts, d), as ``SentenceEncoder(...).encode`` or that of
        sentence-transformers.
    name : str
        The new column, a list of lists of d float32 a row.

    Returns
    -------
    pyarrow.Table
        The rows as they were, with what is new.

    Raises
    ------
    ValueError
        If the column is missing, or the encoder gives something else, or not finite numbers.
    """
    arrays.check_table(table)
    responses = arrays.whole(table, "responses").to_pylist()
    texts = [text for row in responses for text in row]
    with np.errstate(over="ignore"):  # it is refused below
        found = np.ascontiguousarray(encoder(texts) if texts else np.zeros((0, 1)), np.float32)
    if found.ndim != 2 or len(found) != len(texts):
        raise ValueError(f"encoder: expected shape ({len(texts)}, d), got {found.shape}")
    ends = np.cumsum([0, *(len(row) for row in responses)])
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found).all(1)).argmax())
        row = int(np.searchsorted(ends, bad, side="right")) - 1
        raise ValueError(f"encoder: expected finite numbers for row {row}, got {found[bad]}")
    inner = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])
    column = pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), inner)
    return arrays.set_column(table, name, column)


def select(
    table: pa.Table,
    *,
    selector: str = "opt-select",
    k: int = 7,
    seed: int = 0,
    n_threads: int | None = None,
    **settings: Any,
) -> pa.Table:
    """Choose a positive and k negatives of every row: columns ``positive`` and ``negatives``.

    Parameters
    ----------
    table : pyarrow.Table
        With ``scores`` (list of numbers); for opt-select, coreset, kmedoids and logdet
        ``embeddings`` (list of equally long vectors; bottom-k breaks ties with them); for mass-dpo
        ``features`` (likewise), ``policy_logps`` and ``ref_logps``, and ``positive`` or else
        ``scores``; for random and hard-preference ``prompt``.
    selector : str
        One of ``SELECTORS``.
    k : int
        Negatives; all others where there are fewer.
    seed : int
        Of what is random; each row draws by its own prompt.
    n_threads : int, optional
        Threads of the core; by default `pyfast.get_num_threads`.
    **settings
        More arguments of the selector in `pyfast.select`, such as ``n_init`` or ``gamma``.

    Returns
    -------
    pyarrow.Table
        The rows as they were, with what is new.

    Raises
    ------
    ValueError, TypeError
        If a column is missing or does not fit; the message names it, and the row or group.
    """
    arrays.check_table(table)
    if selector not in SELECTORS:
        raise ValueError(f"selector: expected one of {', '.join(SELECTORS)}; got {selector!r}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: expected at least 1, got {k!r}")
    seed = args.check_seed(seed)  # that of a row is made of it
    if table.num_rows == 0:
        positive, negatives, offsets = np.zeros(0, int), np.zeros(0, int), np.zeros(1, np.int64)
    elif selector in ("opt-select", "coreset", "bottom-k"):
        positive, negatives, offsets = _grouped(table, selector, k, seed, n_threads, settings)
    else:
        chosen = _rows(table, selector, k, seed, n_threads, settings)
        positive = np.array([top for top, _ in chosen])
        offsets = np.cumsum([0, *(len(others) for _, others in chosen)])
        negatives = np.array([i for _, others in chosen for i in others], int)
    table = arrays.set_column(table, "positive", pa.array(positive, pa.int32()))
    return arrays.set_column(table, "negatives", arrays.lists(negatives, offsets, pa.int32()))


def select_needs(selector: str) -> dict[str, pa.DataType | None]:
    """Return the columns that `select` reads, and the types to read them as from JSON."""
    numbers = pa.list_(pa.float64())
    if selector == "mass-dpo":
        rows = pa.list_(pa.list_(pa.float32()))
        logps = {"policy_logps": numbers, "ref_logps": numbers}
        return {"features": rows, **logps, "positive": pa.int64(), "scores": numbers}
    if selector in ("random", "hard-preference"):
        return {"prompt": None, "scores": numbers}
    return {"scores": numbers, "embeddings": pa.list_(pa.list_(pa.float32()))}


def export(table: pa.Table, *, format: str = "list", drop: Sequence[str] = ()) -> pa.Table:
    """Turn groups into a preference data set of the chosen and the rejected.

    Parameters
    ----------
    table : pyarrow.Table
        Rows of any format in `formats.FORMATS`; of groups with ``positive`` and ``negatives`` these
        are taken, else the best score against all others.
    format : str
        The format to write.
    drop : sequence of str
        Columns to leave out. One named like a column of the format, with another content, is
        refused: it would be lost.

    Returns
    -------
    pyarrow.Table
        A row a group, or for formats of pairs a row a negative. The columns of ours that hold a
        list of one entry a response (embeddings, log-probs) are left out: they would no longer fit;
        ``valid`` counts the responses as they stand now, and is left out of all formats but groups.

    Raises
    ------
    ValueError
        If a row cannot be read or written; with the row. If groups are written whose responses are
        in another order now, or fewer, and another column holds a list of one entry a response.
    """
    arrays.check_table(table)
    if format not in formats.FORMATS:
        raise ValueError(f"format: expected one of {', '.join(formats.FORMATS)}; got {format!r}")
    if isinstance(drop, str):
        raise TypeError(f"drop: expected a list of columns, got {drop!r}")
    left_out = {*_PER_RESPONSE, *_OF_SAMPLING, *drop}
    fitting = [name for name in table.column_names if name not in left_out]
    rows, before, after = [], [], []
    for number, row in enumerate(table.select(fitting).to_pylist()):
        try:
            before.append(formats.read(row))
            after.append(before[-1].chosen_first())
            rows += formats.FORMATS[format].write(after[-1])
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    if format == "groups":
        check_beside(before, after)
    # of the fields of all rows: Arrow takes those of the first alone
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _grouped(
    table: pa.Table,
    selector: str,
    k: int,
    seed: int,
    n_threads: int | None,
    settings: dict[str, Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Choose in all rows by one call of the core."""
    scores, offsets = arrays.numbers(table, "scores")
    embeddings: Any = None
    if selector != "bottom-k" or "embeddings" in table.column_names:
        embeddings = _embeddings(table, offsets)
    common: dict[str, Any] = {"k": k, "offsets": offsets, "n_threads": n_threads}
    if selector == "opt-select":
        found = selectors.opt_select(embeddings, scores, seed=seed, **common, **settings)
    elif selector == "coreset":
        found = selectors.coreset(embeddings, scores, seed=seed, **common, **settings)
    else:
        found = selectors.bottom_k(scores, embeddings=embeddings, **common, **settings)
    bounds = found.negative_offsets
    assert bounds is not None  # the groups were given with offsets
    return np.asarray(found.positive), found.negatives, bounds


def _rows(
    table: pa.Table,
    selector: str,
    k: int,
    seed: int,
    n_threads: int | None,
    settings: dict[str, Any],
) -> list[tuple[int, list[int]]]:
    """Choose row by row."""
    if selector == "mass-dpo":
        return _mass_dpo(table, k, n_threads, settings)
    scores, offsets = arrays.numbers(table, "scores")
    args.check_values(scores, "scores", args.Layout("ragged", offsets))
    of_points = selector in ("kmedoids", "logdet")
    if of_points:
        embeddings = _embeddings(table, offsets)
        common = {"n_threads": n_threads, **({"seed": seed} if selector == "kmedoids" else {})}
        choose = getattr(selectors, selector)
    prompts = [] if of_points else _prompts(table)
    chosen = []
    for row in range(len(offsets) - 1):
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        rewards = np.asarray(scores[part], np.float64)
        least = 2 if selector == "hard-preference" else 1
        if len(rewards) < least:
            raise ValueError(f"scores: expected at least {least} in row {row}, got {len(rewards)}")
        top = int(rewards.argmax())
        others = np.delete(np.arange(len(rewards)), top)
        if selector == "hard-preference":
            own, gamma = seeds.of_prompt(prompts[row], seed), settings.get("gamma", 1.0)
            rest = {name: value for name, value in settings.items() if name != "gamma"}
            drawn = selectors.hard_preference(rewards, gamma, draws=k, seed=own, **rest)
            chosen.append((top, drawn.negatives.tolist()))
            continue
        if k >= len(others):
            picked = np.arange(len(others))
        elif of_points:
            found = choose(embeddings[part][others], k, **common, **settings)
            picked = found.medoids if selector == "kmedoids" else found.indices
        else:
            own = seeds.of_prompt(prompts[row], seed)
            picked = selectors.random(len(others), k, seed=own).indices
        chosen.append((top, others[picked].tolist()))
    return chosen


def _embeddings(table: pa.Table, offsets: NDArray[np.int64]) -> arrays.Floats:
    """Return the embeddings of responses whose scores begin at these offsets."""
    embeddings, ends = arrays.vectors(table, "embeddings")
    if (ends != offsets).any():
        row = int((ends != offsets).argmax()) - 1
        raise ValueError(f"embeddings: expected one for each score, not so in row {row}")
    return embeddings


def _prompts(table: pa.Table) -> list[str]:
    if "prompt" not in table.column_names:
        raise ValueError(f"prompt: expected a column of this name, got {table.column_names}")
    return [str(prompt) for prompt in table.column("prompt").to_pylist()]


def _mass_dpo(
    table: pa.Table, k: int, n_threads: int | None, settings: dict[str, Any]
) -> list[tuple[int, list[int]]]:
    features, offsets = arrays.vectors(table, "features")
    logps = {}
    for name in ("policy_logps", "ref_logps"):
        logps[name], ends = arrays.numbers(table, name)
        if (ends != offsets).any():
            raise ValueError(f"{name}: expected one for each of the features")
    if "positive" in table.column_names:
        tops = arrays.whole(table, "positive").to_pylist()
    else:
        scores, ends = arrays.numbers(table, "scores")
        if (ends != offsets).any():
            raise ValueError("scores: expected one for each of the features")
        tops = [int(scores[a:b].argmax()) for a, b in pairwise(ends)]
    chosen = []
    for row, top in enumerate(tops):
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        count = min(k, part.stop - part.start - 1)
        if count < 1:
            raise ValueError(f"features: expected at least 2 in row {row}")
        found = selectors.mass_dpo(
            features[part],
            logps["policy_logps"][part],
            logps["ref_logps"][part],
            preferred=top,
            k=count,
            n_threads=n_threads,
            **settings,
        )
        chosen.append((int(top), found.negatives.tolist()))
    return chosen
