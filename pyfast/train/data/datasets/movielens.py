"""MovieLens: the films that a viewer has seen, and which comes next (MASS-DPO, section 6).

One group asks for the film that a viewer saw after the last few, among candidates that are that
film and others that the viewer never saw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyfast.train.data.datasets.sources import SPLITS, packaged, split_names
from pyfast.train.data.lines import lines
from pyfast.train.errors import UserError
from pyfast.train.seeds import derive

_IN_BRACKETS = re.compile(r"(?P<rest>.*\S)\s*\([^()]*\)")
_ARTICLE = re.compile(r"(?P<rest>.+), (?P<article>The|An?|Il|L[ae']|Les|D[ae]s|De[rnt]|Die|El)")


@dataclass(frozen=True)
class MovieLens:
    """How groups are made.

    Attributes
    ----------
    history : int
        Films in the prompt at most: the last ones before the next.
    least : int
        Films in the prompt at least.
    candidates : int
        Films to choose from, the right one included.
    listed : bool
        Whether the prompt lists the candidates.
    min_rating : float or None
        Leave out of histories and answers what the viewer rated lower. (It stays *seen*: it is
        never a candidate.)
    sizes : (int, int, int)
        Groups of the splits train, validation and test, at most.
    seed : int
    """

    history: int = 10
    least: int = 3
    candidates: int = 20
    listed: bool = True
    min_rating: float | None = None
    sizes: tuple[int, int, int] = (20_000, 200, 2_000)
    seed: int = 0


def plain_title(title: str) -> str:
    """Return a title without year and second title, its article in front.

    >>> plain_title("Matrix, The (1999)"), plain_title("Big Blue, The (Grand bleu, Le) (1988)")
    ('The Matrix', 'The Big Blue')
    """
    title = title.strip()
    while (found := _IN_BRACKETS.fullmatch(title)) is not None:
        title = found["rest"]
    moved = _ARTICLE.fullmatch(title)
    if moved is None:
        return title
    space = "" if moved["article"].endswith("'") else " "
    return f"{moved['article']}{space}{moved['rest']}"


def groups(how: MovieLens, source: Path | None = None) -> Iterator[dict[str, Any]]:
    """Make the groups of MovieLens-100K, or of other data in its form.

    Viewers are split, not events: nobody is both learnt from and measured on. Within a split the
    groups go round the viewers, so that few groups are of many viewers. Films of one title are
    one film; of a viewer's events with it, the first counts. Events of the same second keep
    their order in the file.

    Parameters
    ----------
    how : MovieLens
    source : Path, optional
        A folder with ``NAME.inter`` and ``NAME.item`` as RecBole has them (tab-separated, with
        columns user_id, item_id, rating, timestamp and item_id, movie_title); default: the
        ml-100k in the wheel ``recbole``.

    Yields
    ------
    dict
        ``prompt``, ``responses``, ``positive``, ``split``, ``id``, ``user``.

    Raises
    ------
    UserError
        If the files are missing or broken, with file and line.
    """
    if source is None:
        source = packaged("recbole", "recbole", "dataset_example/ml-100k")
    titles = _titles(_only(source, ".item"))
    seen, events = _events(_only(source, ".inter"), titles, how.min_rating)
    films = sorted(set(titles.values()))
    users = sorted(events)
    split_of = dict(zip(users, split_names(how.seed, len(users)), strict=True))
    for split, size in zip(SPLITS, how.sizes, strict=True):
        mine = [user for user in users if split_of[user] == split]
        for user, place in _round(mine, events, how, size):
            yield _group(user, place, events[user], seen[user], films, how, split)


def _round(
    users: list[str], events: dict[str, list[str]], how: MovieLens, size: int
) -> Iterator[tuple[str, int]]:
    """Yield (user, place of the film to guess), going round the users until there are enough."""
    turns: list[tuple[int, int, str, int]] = []
    order = np.random.default_rng(derive(how.seed, "users")).permutation(len(users))
    for rank, who in zip(order.tolist(), users, strict=True):
        places = np.arange(how.least, len(events[who]))
        np.random.default_rng(derive(how.seed, "events", who)).shuffle(places)
        turns += [(turn, rank, who, int(place)) for turn, place in enumerate(places)]
    for _, _, who, place in sorted(turns)[:size]:
        yield who, place


def _group(
    user: str,
    place: int,
    films_seen: list[str],
    seen: set[str],
    films: list[str],
    how: MovieLens,
    split: str,
) -> dict[str, Any]:
    generator = np.random.default_rng(derive(how.seed, "candidates", user, place))
    answer = films_seen[place]
    unseen = [film for film in films if film not in seen]
    if len(unseen) < how.candidates - 1:
        raise UserError(
            f"user {user}: expected {how.candidates - 1} films never seen, there are {len(unseen)}"
        )
    drawn = generator.choice(len(unseen), size=how.candidates - 1, replace=False)
    candidates = [answer, *(unseen[i] for i in drawn)]
    candidates = [candidates[i] for i in generator.permutation(len(candidates))]
    history = films_seen[max(0, place - how.history) : place]
    return {
        "prompt": _prompt(history, candidates if how.listed else None),
        "responses": candidates,
        "positive": candidates.index(answer),
        "split": split,
        "id": f"user-{user}-film-{place}",
        "user": user,
    }


def _prompt(history: list[str], candidates: list[str] | None) -> str:
    text = "A viewer saw these films, one after the other: " + "; ".join(history) + ".\n"
    if candidates is None:
        return text + "Which film did the viewer see next? Answer with its title alone."
    return (
        f"{text}Which of these films did the viewer see next: {'; '.join(candidates)}?\n"
        "Answer with its title alone."
    )


def _only(source: Path, suffix: str) -> Path:
    found = sorted(source.glob(f"*{suffix}"))
    if len(found) != 1:
        raise UserError(f"{source}: expected one file *{suffix}, there are {len(found)}")
    return found[0]


def _rows(path: Path, *columns: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (file:line, values) of a tab-separated file whose first line names the columns."""
    places: list[int] = []
    width = 0
    for number, text in lines(path):
        cells = text.split("\t")
        if not width:
            names = [cell.partition(":")[0] for cell in cells]
            missing = [column for column in columns if column not in names]
            if missing:
                raise UserError(f"{path}:{number}: expected a column {missing[0]}, got {names}")
            places, width = [names.index(column) for column in columns], len(names)
            continue
        if len(cells) <= max(places):
            raise UserError(
                f"{path}:{number}: expected {width} cells between tabs, got {len(cells)}"
            )
        yield f"{path}:{number}", tuple(cells[i] for i in places)


def _titles(path: Path) -> dict[str, str]:
    """Return the films' titles by item; those without one (``unknown``) are left out."""
    found = {}
    for place, (item, title) in _rows(path, "item_id", "movie_title"):
        if item in found:
            raise UserError(f"{place}: item_id {item} stands twice")
        plain = plain_title(title)
        if plain and plain.casefold() not in ("unknown", "unkonwn"):  # so spelt in RecBole's file
            found[item] = plain
    return found


def _events(
    path: Path, titles: dict[str, str], min_rating: float | None
) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
    """Return by user all films seen, and in the order of time those that count."""
    rated: dict[str, list[tuple[float, str, float]]] = {}
    for place, (user, item, rating, time) in _rows(
        path, "user_id", "item_id", "rating", "timestamp"
    ):
        numbers = []
        for name, text in (("timestamp", time), ("rating", rating)):
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UserError(f"{place}: {name}: expected a number, got {text!r}")
            numbers.append(value)
        if item in titles:
            rated.setdefault(user, []).append((numbers[0], titles[item], numbers[1]))
    seen, counted = {}, {}
    for user, events in rated.items():
        events.sort(key=lambda event: event[0])
        seen[user] = {title for _, title, _ in events}
        first = dict.fromkeys(
            title for _, title, stars in events if min_rating is None or stars >= min_rating
        )
        counted[user] = list(first)
    return seen, counted
