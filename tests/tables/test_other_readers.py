"""Exported files in the readers of the projects that they are for.

LLaMA-Factory's and OpenRLHF's own functions run where these are importable (``make test-readers``):
what converting text does not use (torchaudio, pylatexenc) is an empty module then. Without them,
and for ms-swift, whose data sets want its whole command line, the rule that their documentation
gives is applied by hand.
"""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pytest

from pyfast.tables import stages

TABLE = pa.Table.from_pylist([
    {"prompt": "say a", "responses": ["good", "bad", "poor"], "scores": [0.9, 0.1, 0.2]},
    {"prompt": "say b", "responses": ["sad", "nice", "meh"], "scores": [0.0, 0.8, 0.4]},
])  # fmt: skip
TALK = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]  # fmt: skip
TALKS = pa.Table.from_pylist([{"prompt": TALK, "responses": ["yes", "no"], "scores": [1.0, 0.0]}])
WANTED = [("say a", "good", "bad"), ("say a", "good", "poor"),
          ("say b", "nice", "sad"), ("say b", "nice", "meh")]  # fmt: skip


def rows(table, format):
    return stages.export(stages.select(table, selector="bottom-k", k=2), format=format).to_pylist()


@pytest.fixture
def beside(monkeypatch):
    """Let a package be imported without what it has no use for here."""

    def use(package, *absent):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
        for name in absent:
            try:
                here = importlib.util.find_spec(name) is not None
            except ModuleNotFoundError:
                here = False
            if not here:
                empty = ModuleType(name)
                empty.__spec__ = importlib.machinery.ModuleSpec(name, None)
                monkeypatch.setitem(sys.modules, name, empty)
                parent, _, child = name.rpartition(".")
                if parent:
                    monkeypatch.setattr(sys.modules[parent], child, empty, raising=False)

    return use


def by_the_documents(format, row):
    """Return prompt, chosen, rejected and system, by the rules in LLaMA-Factory's data/README."""
    if format == "alpaca":
        query = [row[name] for name in ("instruction", "input") if row[name]]
        return "\n".join(query), row["chosen"], row["rejected"], row.get("system", "")
    turns = row["conversations"]
    system = turns[0]["value"] if turns[0]["from"] == "system" else ""
    turns = turns[1:] if system else turns
    assert len(turns) % 2 == 1  # a ranking data set ends with the user's turn
    assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2) + ["human"]
    assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
    return turns[-1]["value"], row["chosen"]["value"], row["rejected"]["value"], system


def in_llama_factory(format, row):
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import DatasetAttr

    kind = DatasetAttr("file", "mine", formatting=format, ranking=True)
    kind.chosen, kind.rejected = "chosen", "rejected"  # "columns" of dataset_info.json
    if "history" in row:
        kind.system, kind.history = "system", "history"
    arguments = SimpleNamespace(media_dir=".")
    made = get_dataset_converter(format, kind, arguments)(row)
    assert [turn["role"] for turn in made["_response"]] == ["assistant", "assistant"]
    chosen, rejected = (turn["content"] for turn in made["_response"])
    assert made["_prompt"][-1]["role"] == "user"
    return made["_prompt"][-1]["content"], chosen, rejected, made["_system"]


@pytest.mark.parametrize("reader", ["documented", "real"])
@pytest.mark.parametrize("format", ["alpaca", "sharegpt"])
def test_llama_factory(beside, format, reader):
    if reader == "real":
        beside("llamafactory", "torchaudio")
    read = in_llama_factory if reader == "real" else by_the_documents
    assert [read(format, row) for row in rows(TABLE, format)] == [(*w, "") for w in WANTED]
    (talk,) = rows(TALKS, format)
    assert read(format, talk) == ("more", "yes", "no", "be kind")
    if format == "alpaca":
        assert talk["history"] == [["hi", "hello"]]


class Tokenizer:
    """A chat template that can be read."""

    @staticmethod
    def apply_chat_template(turns, tokenize, add_generation_prompt=False):
        text = "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)
        return text + ("<assistant>" if add_generation_prompt else "")


def test_openrlhf(beside):
    beside("openrlhf", "pylatexenc", "pylatexenc.latex2text")
    from openrlhf.datasets.reward_dataset import preprocess_data

    found = [preprocess_data(row, "{}", "prompt", is_dpo=True)[:3] for row in rows(TABLE, "pairs")]
    assert found == WANTED
    messages = pa.Table.from_pylist([
        {"prompt": TALK, "scores": [1.0, 0.0],
         "responses": [[{"role": "assistant", "content": t}] for t in ("yes", "no")]}
    ])  # fmt: skip
    template = Tokenizer.apply_chat_template
    (row,) = rows(messages, "pairs")
    prompt, chosen, rejected, _ = preprocess_data(row, None, "prompt", apply_chat_template=template)
    assert prompt == template(TALK, False, True)
    assert (chosen, rejected) == ("yes", "no")


def test_ms_swift_by_its_documents():
    """messages end with the assistant's chosen answer; rejected_response is another text."""
    found = []
    for row in rows(TABLE, "swift"):
        *_, user, chosen = row["messages"]
        assert (user["role"], chosen["role"]) == ("user", "assistant")
        assert row["rejected_response"] != chosen["content"]
        found.append((user["content"], chosen["content"], row["rejected_response"]))
    assert found == WANTED
