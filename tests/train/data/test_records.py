"""The schema of group files, and the tokens of what is in them."""

import gzip
import json

import pytest

from pyfast.train.data.prompts import Prompt, read_prompts
from pyfast.train.data.records import Record, read_records
from pyfast.train.data.tokens import Tokeniser, end_of_response
from pyfast.train.errors import UserError

CHAT = [
    {"role": "user", "content": "good day"},
    {"role": "assistant", "content": "sad"},
    {"role": "user", "content": "why"},
]
ROW = {"prompt": "p", "responses": ["a", "b", "c"]}


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_a_record_keeps_all_of_its_line(tmp_path):
    row = {**ROW, "scores": [1, 0.5, 0], "positive": 0, "valid": [0, 2], "split": "test", "id": 7}
    path = write(tmp_path / "g.jsonl", {**row, "genre": "x", "positive": None}, {**row, "id": "8"})
    first, second = read_records(path, needs=["scores", "valid"])
    assert first == Record(Prompt("p"), ["a", "b", "c"], [1.0, 0.5, 0.0], None, [0, 2], "test", "7")
    assert first.prompt.fields == {"genre": "x"}
    assert (first.place, second.place) == (f"{path}:1", f"{path}:2")
    again = write(tmp_path / "h.jsonl.gz", *(json.loads(r.to_json()) for r in (first, second)))
    assert read_records(again) == [first, second]


def test_parquet_and_json_lines_are_read_alike(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**ROW, "scores": [1.0, 0.5, 0.0], "id": "1"}, {**ROW, "prompt": "q", "scores": None}]
    chats = [{**ROW, "prompt": CHAT}]
    for name, some in (("a", rows), ("b", chats)):
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f"{name}.parquet")
        lines = read_records(write(tmp_path / f"{name}.jsonl", *some))
        assert read_records(tmp_path / f"{name}.parquet") == lines
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "p", "responses": [1, 2]}]), path := tmp_path / "c.parquet"
    )
    with pytest.raises(UserError, match=r"c\.parquet: row 0: responses: expected a list of str"):
        read_records(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"c\.parquet: cannot be read as Parquet"):
        read_records(path)


def test_a_split_is_read_alone(tmp_path):
    path = write(tmp_path / "g.jsonl", {**ROW, "split": "a"}, {**ROW, "split": "b", "id": "2"})
    (only,) = read_records(path, split="b")
    assert only.id == "2"
    with pytest.raises(UserError, match="at least one group of split 'c'"):
        read_records(path, split="c")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"responses": ["a", "b"]}, 'expected a non-empty string "prompt"'),
        ({"prompt": "p"}, "responses: expected a list of strings"),
        ({**ROW, "responses": "ab"}, "responses: expected a list of strings"),
        ({**ROW, "responses": ["a", None]}, "responses: expected a list of strings"),
        ({**ROW, "responses": ["a"]}, "responses: expected at least 2, got 1"),
        ({**ROW, "scores": [1, 2]}, "scores: expected 3 numbers"),
        ({**ROW, "scores": [1, "2", 3]}, "scores[1]: expected a finite number"),
        ({**ROW, "scores": [1, float("nan"), 3]}, "scores[1]: expected a finite number"),
        ({**ROW, "positive": 3}, "positive: expected a whole number in 0..2, got 3"),
        ({**ROW, "positive": True}, "positive: expected a whole number"),
        ({**ROW, "valid": []}, "valid: expected a list"),
        ({**ROW, "valid": [0, -1]}, "valid[1]: expected a whole number in 0..2"),
        ({**ROW, "valid": [0, 0]}, "valid: expected numbers that differ"),
        ({**ROW, "split": 3}, "split: expected a string"),
        ({**ROW, "id": [3]}, "id: expected a string or a whole number"),
        ({**ROW, "prompt": []}, "prompt: expected at least one message"),
        ({**ROW, "prompt": [{"role": "user"}]}, 'prompt[0]: expected {"role", "content"}'),
        ({**ROW, "prompt": [{"role": "me", "content": "a"}]}, "prompt[0].role: expected one of"),
        ({**ROW, "prompt": [{"role": "user", "content": []}]}, "prompt[0].content: expected a str"),
        ({**ROW, "prompt": CHAT[:2]}, "prompt: expected a last message of the user"),
    ],
)  # fmt: skip
def test_a_bad_record_is_told_with_its_line(tmp_path, row, message):
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}:3: {message}")


def test_what_a_recipe_needs_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r":1: scores: expected one number a response, got nothing"):
        read_records(write(tmp_path / "g.jsonl", ROW), needs=["scores"])
    with pytest.raises(UserError, match=r"data\.groups: no such file"):
        read_records(tmp_path / "nowhere.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n')[:-6])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz"):
        read_records(tmp_path / "cut.jsonl.gz")


def test_a_chat_is_a_prompt_of_its_own(tmp_path):
    path = write(
        tmp_path / "p.jsonl", {"prompt": CHAT[:1]}, {"prompt": CHAT}, {"prompt": "good day"}
    )
    one, three, text = read_prompts(path)
    assert str(one) == str(text) == "good day"
    assert one != text
    assert one == Prompt(CHAT[:1])
    assert str(three) == "user: good day\n\nassistant: sad\n\nuser: why"
    assert [p.written for p in (one, three, text)] == [CHAT[:1], CHAT, "good day"]


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def test_chats_and_system_messages_go_through_the_template(tiny):
    tokenizer = tiny.tokenizer(TEMPLATE)
    plain = Tokeniser(tokenizer, {3})
    with_system = Tokeniser(tokenizer, {3}, system="love")
    assert tokenizer.decode(plain.prompt(Prompt(CHAT[:1]))) == "user good day </s> assistant"
    assert plain.prompt("good day") == plain.prompt(Prompt(CHAT[:1]))
    assert tokenizer.decode(with_system.prompt("good day")).startswith("system love </s> user good")
    own = [{"role": "system", "content": "sad"}, *CHAT[:1]]
    assert with_system.prompt(Prompt(own)) == plain.prompt(Prompt(own))
    bare = tiny.tokenizer()
    for system, prompt in ((None, Prompt(CHAT)), ("love", "good day")):
        with pytest.raises(UserError, match="has no chat template"):
            Tokeniser(bare, {3}, system=system).prompt(prompt)
    deaf = tiny.tokenizer("user {{ messages[-1]['content'] }} assistant")
    with pytest.raises(UserError, match="drops or changes the message of the role system: 'love'"):
        Tokeniser(deaf, {3}, system="love").prompt("good day")


def test_a_response_has_exactly_one_end_token(tiny):
    tokeniser = Tokeniser(tiny.tokenizer(), {3})
    day = tiny.tokenizer()("good day")["input_ids"]
    assert tokeniser.response("good day") == [*day, 3]
    assert tokeniser.response("good day </s>") == [*day, 3]
    assert tokeniser.response("good day </s> </s>") == [*day, 3]
    assert tokeniser.response("") == [3]
    with pytest.raises(UserError, match="no end token inside a response"):
        tokeniser.response("good </s> day")


def test_tokens_that_the_model_has_not_are_refused(tiny):
    tokenizer = tiny.tokenizer()
    day = tokenizer("good day")["input_ids"]
    short = Tokeniser(tokenizer, {3}, vocabulary=max(day))
    message = rf"it has {max(day)} tokens, and its tokenizer makes the token {max(day)}, '\w+'"
    for make in (short.prompt, short.response):
        with pytest.raises(UserError, match=message):
            make("good day")
    assert Tokeniser(tokenizer, {3}, vocabulary=max(day) + 1).prompt("good day") == day


def test_long_texts_are_cut_and_counted(tiny):
    tokeniser = Tokeniser(tiny.tokenizer(), {3}, max_prompt=2, max_response=2)
    words = tiny.tokenizer()("good day sad")["input_ids"]
    assert tokeniser.prompt("good day sad") == words[1:]
    assert tokeniser.response("good day") == words[:2]
    assert tokeniser.response("good") == [words[0], 3]
    assert tokeniser.cut == {"prompts": 1, "responses": 1}


def test_the_end_token_is_the_one_that_the_template_puts_after_an_answer(tiny):
    tokenizer = tiny.tokenizer("{{ messages[-1]['content'] }} good")
    assert tokenizer.eos_token_id == 3
    good = tokenizer("good")["input_ids"][0]
    assert end_of_response(tokenizer, frozenset({3, good})) == good
    assert end_of_response(tokenizer, frozenset({3})) == 3
    assert end_of_response(tiny.tokenizer(), frozenset({3, good})) == 3
    assert end_of_response(tiny.tokenizer(), frozenset({good})) == good
