import numpy as np
import pytest

from pyfast.train.data.group import Group, read_groups, write_groups
from pyfast.train.data.prompts import Prompt, check_heldout, read_prompts
from pyfast.train.errors import UserError


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_prompts_of_both_kinds(tmp_path):
    lines = '{"prompt": "Ärger?", "id": 1}\n\n{"prompt": "b"}'
    assert read_prompts(write(tmp_path, "p.jsonl", lines)) == ["Ärger?", "b"]
    assert read_prompts(write(tmp_path, "p.txt", "one\n\n two \n")) == ["one", "two"]
    assert read_prompts(write(tmp_path, "bom.txt", b"\xef\xbb\xbfone\n")) == ["one"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{prompt: 1}", 'expected an object like {"prompt": "..."}; not JSON'),
        ('["a"]', 'expected an object like {"prompt": "..."}, got list'),
        (
            '{"promt": "a"}',
            'expected a non-empty string "prompt", or a list of messages, got nothing',
        ),
        ('{"prompt": 3}', 'expected a non-empty string "prompt", or a list of messages, got 3'),
        ('{"prompt": " "}', 'expected a non-empty string "prompt", or a list of messages, got'),
        (b"\xff\xfe", "expected UTF-8 text"),
    ],
)
def test_a_bad_prompts_line_is_told_with_its_number(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, "p.jsonl", b'{"prompt": "a"}\n\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:3: {message}")


def test_empty_and_missing_prompts_files(tmp_path):
    with pytest.raises(UserError, match="expected at least one prompt"):
        read_prompts(write(tmp_path, "p.jsonl", "\n"))
    with pytest.raises(UserError, match=r"nowhere\.txt: No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_heldout_prompts_must_be_new():
    check_heldout(["a"], ["b"], "h.txt")
    with pytest.raises(UserError, match=r"is also a training prompt: 'a'"):
        check_heldout([Prompt([{"role": "user", "content": "a"}])], [Prompt("a")], "h.txt")
    with pytest.raises(UserError, match=r"h\.txt: held-out prompt is also a training prompt: 'a'"):
        check_heldout(["a"], ["b", "a"], "h.txt")


def test_groups_survive_a_file(tmp_path):
    full = Group(
        "p",
        ["a", "b\n\u2028"],
        [0.1, 1 / 3],
        np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32),
        [[1, 2], [3]],
        [None, -1.5],
        [None, -2.5],
        0,
        [1],
        {"step": 1},
    )
    path = tmp_path / "g.jsonl"
    write_groups(path, [full, Group("q", ["x"])])
    again, bare = read_groups(path)
    assert np.array_equal(again.embeddings, full.embeddings)  # float32, bit for bit
    assert again.embeddings.dtype == np.float32
    for name in ("prompt", "responses", "scores", "token_ids", "policy_logps", "positive", "meta"):
        assert getattr(again, name) == getattr(full, name)
    assert bare == Group("q", ["x"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "expected a group object; not JSON"),
        ('{"prompt": 1, "responses": ["a"]}', "prompt: expected a string"),
        ('{"prompt": "p", "responses": "a"}', "responses: expected a list of strings"),
        ('{"prompt": "p", "responses": []}', "responses: expected at least one"),
        ('{"prompt": "p", "responses": ["a"], "score": [1]}', "score: unknown field"),
        (
            '{"prompt": "p", "responses": ["a", "b"], "scores": [1]}',
            "scores: expected 2 numbers, one a response, got 1",
        ),
        (
            '{"prompt": "p", "responses": ["a"], "scores": [NaN]}',
            "scores[0]: expected a finite number, got nan",
        ),
        (
            '{"prompt": "p", "responses": ["a"], "scores": [null]}',
            "scores[0]: expected a finite number, got None",
        ),
        (
            '{"prompt": "p", "responses": ["a"], "scores": [4611686018427387905]}',
            "scores[0]: expected a number that float64 holds, got 4611686018427387905",
        ),
        (
            '{"prompt": "p", "responses": ["a"], "embeddings": [[1], [2]]}',
            "embeddings: expected 1 rows of equally many numbers",
        ),
        (
            '{"prompt": "p", "responses": ["a", "b"], "embeddings": [[1], [2, 3]]}',
            "embeddings: expected 2 rows",
        ),
        (
            '{"prompt": "p", "responses": ["a", "b"], "embeddings": [[1], [Infinity]]}',
            "embeddings[1]: expected finite numbers",
        ),
        (
            '{"prompt": "p", "responses": ["a", "b"], "embeddings": [[1], ["1"]]}',
            "embeddings[1]: expected finite numbers",
        ),
        (
            '{"prompt": "p", "responses": ["a", "b"], "embeddings": [[true], [2]]}',
            "embeddings[0]: expected finite numbers",
        ),
        ('{"prompt": "p", "responses": ["a"], "positive": 1}', "positive: expected a whole number"),
        (
            '{"prompt": "p", "responses": ["a"], "negatives": [0, 4]}',
            "negatives[1]: expected a whole number in 0..0, got 4",
        ),
        ('{"prompt": "p", "responses": ["a"], "meta": 1}', "meta: expected an object"),
        ('{"prompt": "p", "responses": ["a"], "token_ids": []}', "token_ids: expected 1 lists"),
    ],
)
def test_a_bad_group_is_told_with_its_line(tmp_path, line, message):
    path = write(tmp_path, "g.jsonl", '{"prompt": "p", "responses": ["a"]}\n' + line)
    with pytest.raises(UserError) as caught:
        read_groups(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")
