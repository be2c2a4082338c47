import csv
import json

import pytest

from pyfast.train.errors import UserError
from pyfast.train.evaluation import blinded

ANSWERS = {
    "after": [(f"prompt {i}", f'good, "answer" {i}\nof two lines') for i in range(8)],
    "before": [(f"prompt {i}", f"bad answer {i}") for i in range(8)],
    "bt": [(f"prompt {i}", f"other answer {i}") for i in range(8)],
}


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def test_nothing_but_the_key_says_whose_an_answer_is(tmp_path):
    table, key, rubric = blinded.write(tmp_path, ANSWERS, seed=1)
    rows, whose = rows_of(table), json.loads(key.read_text())
    assert len(rows) == 24
    for row in rows:
        assert (row["prompt"], row["response"]) in ANSWERS[whose[row["item"]]]
        assert all(row[name] == "" for name in blinded.CRITERIA)
    assert all(model not in table.read_text(encoding="utf-8") for model in ("after", "before"))
    prompts = [row["prompt"] for row in rows]
    assert prompts == [p for p in dict.fromkeys(prompts) for _ in range(3)]  # together
    assert prompts != sorted(prompts)
    orders = {tuple(whose[row["item"]] for row in rows[i : i + 3]) for i in range(0, 24, 3)}
    assert len(orders) > 1
    text = rubric.read_text()
    assert all(name in text for name in blinded.CRITERIA)
    blinded.write(tmp_path, ANSWERS, seed=1)
    assert rows_of(table) == rows
    blinded.write(tmp_path, ANSWERS, seed=2)
    assert rows_of(table) != rows


def rate(table, folder, name, ratings):
    rows = rows_of(table)
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, **ratings(row)})
    return path


def test_ratings_are_averaged_by_model(tmp_path):
    table, key, _ = blinded.write(tmp_path, ANSWERS, seed=1)

    def first(row):
        good = "good" in row["response"]
        return {"correctness": "5" if good else "2", "clarity": "4,5" if good else "1.00"}

    def second(row):
        return {"correctness": "3"} if "good" in row["response"] else {}

    tables = [rate(table, tmp_path, "one", first), rate(table, tmp_path, "two", second)]
    found = blinded.read(tables, key)
    assert found["after"]["correctness"] == 4
    assert found["after"]["clarity"] == 4.5
    assert found["after"]["safety"] is None
    assert found["after"]["ratings"] == 16
    assert found["after"]["quality"] == pytest.approx((4.75 + 3) / 2)
    assert found["before"] == {
        "correctness": 2,
        "helpfulness": None,
        "safety": None,
        "clarity": 1,
        "quality": 1.5,
        "ratings": 8,
    }


@pytest.mark.parametrize("value", ["6", "0", "good", "nan"])
def test_another_rating_is_refused(tmp_path, value):
    table, key, _ = blinded.write(tmp_path, ANSWERS, seed=1)
    bad = rate(table, tmp_path, "bad", lambda row: {"safety": value})
    with pytest.raises(UserError, match=r"bad.csv:\d+: safety: expected a number from 1 to 5"):
        blinded.read([bad], key)


def test_an_unknown_item_is_refused(tmp_path):
    table, key, _ = blinded.write(tmp_path, ANSWERS, seed=1)
    bad = rate(table, tmp_path, "bad", lambda row: {"item": "99"})
    with pytest.raises(UserError, match="item: expected one of"):
        blinded.read([bad], key)
