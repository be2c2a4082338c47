"""Group files made of public data sets: on small made-up files of the same form."""

import json

import pytest

from pyfast import cli
from pyfast.train.data.datasets import choices, movielens, sources
from pyfast.train.data.datasets.movielens import MovieLens, plain_title
from pyfast.train.errors import UserError

FILMS = ["Matrix, The (1999)", "Heat", "Postino, Il", "Heat", "Seven (Se7en)", "unkonwn", "Up"]
SMALL = {"history": 3, "least": 2, "candidates": 3, "sizes": (50, 50, 50)}


def ratings(folder, users=10):
    """Users see films 1, 2, ... in time; every user leaves some out."""
    folder.mkdir(exist_ok=True)
    titles = [*FILMS, *(f"Film {i}" for i in range(8, 31))]
    items = [f"{i}\t{title}\t1999\tDrama" for i, title in enumerate(titles, 1)]
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    (folder / "ml.item").write_text("\n".join([head, *items]))
    events = [
        (user, film, 1 + (user + film) % 5, 1000 + film)
        for user in range(users)
        for film in range(1, 31)
        if (film + user) % 2
    ]
    rows = ["\t".join(map(str, event)) for event in reversed(events)]  # not in the order of time
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "ml.inter").write_text("\n".join([head, *rows]))
    return folder


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("Matrix, The (1999)", "The Matrix"),
        ("Matrix, The", "The Matrix"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        ("Horseman on the Roof, The (Hussard sur le toit, Le)", "The Horseman on the Roof"),
        ("Enfer, L'", "L'Enfer"),
        ("American in Paris, An", "An American in Paris"),
        ("Paris, Texas", "Paris, Texas"),
        ("Seven (Se7en) (1995)", "Seven"),
        ("(500)", "(500)"),
    ],
)
def test_titles(title, plain):
    assert plain_title(title) == plain


def test_a_group_is_a_viewers_next_film_among_films_never_seen(tmp_path):
    made = list(movielens.groups(MovieLens(**SMALL), ratings(tmp_path / "ml")))
    titles = [plain_title(title) for title in FILMS] + [f"Film {i}" for i in range(8, 31)]
    assert made
    for group in made:
        user = int(group["user"])
        films = [titles[film - 1] for film in range(1, 31) if (film + user) % 2]
        films = list(dict.fromkeys(title for title in films if title != "unkonwn"))
        place = int(group["id"].rpartition("-")[2])
        responses, positive = group["responses"], group["positive"]
        assert responses[positive] == films[place]
        assert len(set(responses)) == len(responses) == 3
        assert not set(responses) & set(films) - {films[place]}
        history = "; ".join(films[max(0, place - 3) : place])
        assert f"one after the other: {history}.\n" in group["prompt"]
        assert f"see next: {'; '.join(responses)}?" in group["prompt"]
    assert len({group["positive"] for group in made}) == 3  # shuffled
    assert len({(group["prompt"], group["user"]) for group in made}) == len(made)


def test_viewers_are_split_and_groups_go_round_them(tmp_path):
    folder = ratings(tmp_path / "ml")
    by_split = {}
    for group in movielens.groups(MovieLens(**SMALL | {"sizes": (7, 1, 2)}), folder):
        by_split.setdefault(group["split"], []).append(group["user"])
    assert {split: len(users) for split, users in by_split.items()} == {
        "train": 7, "validation": 1, "test": 2,
    }  # fmt: skip
    assert all(len(set(users)) == len(users) for users in by_split.values())
    everybody = [user for users in by_split.values() for user in set(users)]
    assert len(set(everybody)) == len(everybody) == 10


def test_low_ratings_stay_seen(tmp_path):
    folder = ratings(tmp_path / "ml")
    (all_seen, counted) = movielens._events(
        folder / "ml.inter", movielens._titles(folder / "ml.item"), min_rating=4.0
    )
    for user, seen in all_seen.items():
        assert len(counted[user]) < len(seen)
        assert set(counted[user]) < seen
    for group in movielens.groups(MovieLens(**SMALL, min_rating=4.0), folder):
        others = set(group["responses"]) - {group["responses"][group["positive"]]}
        assert not others & all_seen[group["user"]]


def test_the_seed_decides_and_lists_may_be_left_out(tmp_path):
    folder = ratings(tmp_path / "ml")
    one, again, other = (
        list(movielens.groups(MovieLens(**SMALL, seed=seed), folder)) for seed in (0, 0, 1)
    )
    assert one == again
    assert one != other
    bare = list(movielens.groups(MovieLens(**SMALL, listed=False), folder))
    assert [g["responses"] for g in bare] == [g["responses"] for g in one]
    assert not any(title in bare[0]["prompt"].split("\n")[1] for title in bare[0]["responses"])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ml.inter", "\t1001", "\tsoon", r"ml.inter:\d+: timestamp: expected a number, got 'soon'"),
        ("ml.inter", "\t1001", "", r"ml.inter:\d+: expected 4 cells between tabs, got 3"),
        ("ml.inter", "rating:float", "stars", "ml.inter:1: expected a column rating, got"),
        ("ml.item", "\n2\t", "\n1\t", "ml.item:3: item_id 1 stands twice"),
    ],
)
def test_broken_files_are_told_by_line(tmp_path, file, old, new, message):
    path = ratings(tmp_path / "ml") / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        list(movielens.groups(MovieLens(**SMALL), path.parent))


def questions(folder):
    path = folder / "qasc.jsonl"
    rows = [
        {
            "id": f"q{i}",
            "question": {
                "stem": f"What is {i}?",
                "choices": [
                    {"label": label, "text": text}
                    for label, text in zip(
                        "ABCD", [f"Right {i}", "wrong", "Wrong ", "None of the above"], strict=True
                    )
                ],
            },
            "answerKey": "A",
        }
        for i in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, [*rows, rows[3] | {"id": "again"}])))
    return path


def test_options_of_other_questions_fill_up_a_group(tmp_path):
    made = list(choices.groups(choices.Choices(8), choices.from_file(questions(tmp_path))))
    assert len(made) == 20  # the repeated one is left out
    for group in made:
        number = int(group["id"][1:])
        keys = [text.strip().casefold() for text in group["responses"]]
        assert group["responses"][group["positive"]] == f"Right {number}"
        assert len(keys) == len(set(keys)) == 8
        assert {f"right {number}", "wrong", "none of the above"} <= set(keys)
        assert group["own"] == 3
        assert all(f"\n- {text}" in group["prompt"] for text in group["responses"])
    assert {g["split"] for g in made} == {"train", "validation", "test"}
    assert len({g["positive"] for g in made}) > 3


def test_meta_options_are_not_lent_and_small_subjects_give_fewer():
    of = choices.Question
    asked = [
        of("1", "a?", ["x", "All of the above"], 0, "s"),
        of("2", "b?", ["y", "z"], 1, "s"),
        of("3", "c?", ["w", "v"], 1, "other"),
    ]
    made = {group["id"]: group for group in choices.groups(choices.Choices(20), asked)}
    assert set(made["2"]["responses"]) == {"x", "y", "z"}
    assert set(made["1"]["responses"]) == {"x", "All of the above", "y", "z"}
    assert set(made["3"]["responses"]) == {"w", "v"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"answerKey": "A"', '"answerKey": "Z"', "qasc.jsonl:1: answerKey: expected one of the"),
        ('"stem": "What is 0?"', '"stem": ""', "qasc.jsonl:1: question: expected a non-empty"),
        ('"question":', '"asked":', "qasc.jsonl:1: question: expected an object with stem"),
        ("{", "", "qasc.jsonl:1: expected an object with"),
    ],
)
def test_broken_questions_are_told_by_line(tmp_path, old, new, message):
    path = questions(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        choices.from_file(path)


def test_the_command_line(tmp_path, capsys):
    folder, out = ratings(tmp_path / "ml"), tmp_path / "made"
    command = ["data", "movielens", "--source", str(folder), "--out", str(out)]
    command += ["--candidates", "3", "--history", "3", "--test", "4"]
    assert cli.main(command) == 0
    groups = [json.loads(line) for line in (out / "groups.jsonl").read_text().splitlines()]
    assert sum(group["split"] == "test" for group in groups) == 4
    assert "4 test" in capsys.readouterr().out
    before = (out / "groups.jsonl").read_bytes()
    assert cli.main(command) == 0  # the same file is no other
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "another file of that name is there; give another --out" in capsys.readouterr().err
    assert (out / "groups.jsonl").read_bytes() == before
    for flags, message in (
        (["--candidates", "1"], "--candidates: expected a whole number >= 2, got 1"),
        (["--least", "11"], "--least: expected at most --history = 3, got 11"),
        (["--source", "nowhere"], "--source: no such file or folder: nowhere"),
        (["--candidates", "40"], "films never seen, there are"),
    ):
        assert cli.main([*command, *flags]) == 2
        assert message in capsys.readouterr().err


def test_a_wheel_that_is_not_installed_is_named():
    with pytest.raises(UserError, match=r"\(try: pip install --no-deps some-wheel\)"):
        sources.packaged("no_such_package", "some-wheel", "x")


def test_every_split_has_its_share():
    names = sources.split_names(0, 100)
    assert [names.count(split) for split in sources.SPLITS] == [70, 10, 20]
    assert names != sources.split_names(1, 100)
