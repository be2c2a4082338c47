import copy

import pytest

from pyfast.tables import FORMATS, find, read
from pyfast.tables.records import as_messages, as_text

USER = [{"role": "user", "content": "Say hello."}]


def says(text):
    return [{"role": "assistant", "content": text}]


def shown(record):
    """A record's texts, however they are held."""
    texts = [as_text("responses", response) for response in record.responses]
    return as_text("prompt", record.prompt), texts, record.positive, record.negatives


ROWS = {
    "groups": {
        "prompt": "Say hello.",
        "responses": ["no", "hello", "hm"],
        "scores": [0, 2.5, 1],
        "positive": 1,
        "negatives": [0, 2],
    },
    "list": {"prompt": "Say hello.", "chosen": "hello", "rejected": ["no", "hm"]},
    "numbered": {"prompt": "Say hello.", "chosen": "hello", "rejected1": "no", "rejected2": "hm"},
    "pairs": {"prompt": "Say hello.", "chosen": "hello", "rejected": "no"},
    "implicit": {"chosen": USER + says("hello"), "rejected": USER + says("no")},
    "nemo": {
        "context": USER,
        "completions": [
            {"rank": 1, "completion": says("no")},
            {"rank": 0, "completion": says("hello")},
            {"rank": 2, "completion": says("hm")},
        ],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Say hello."}],
        "chosen": {"from": "gpt", "value": "hello"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "alpaca": {"instruction": "Say hello.", "input": "", "chosen": "hello", "rejected": "no"},
    "swift": {"messages": USER + says("hello"), "rejected_response": "no"},
    "ultrafeedback": {
        "instruction": "Say hello.",
        "completions": [
            {"response": "no", "overall_score": 1.0},
            {"response": "hello", "overall_score": 9.0},
            {"response": "hm", "overall_score": 4.5},
        ],
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_each_format(name):
    row = {**ROWS[name], "id": 7, "source": None}
    assert find(row, row).name == name
    record = read(row).chosen_first()
    prompt, texts, positive, negatives = shown(record)
    assert prompt == "Say hello."
    assert texts in (["hello", "no"], ["hello", "no", "hm"])
    assert (positive, negatives) == (0, list(range(1, len(texts))))
    assert record.rest == {"id": 7, "source": None}  # what is not ours is kept


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_from_each_format_to_each(source, target):
    record = read({**ROWS[source], "id": 7}).chosen_first()
    if record.scores is None and target == "ultrafeedback":
        with pytest.raises(ValueError, match="scores: expected"):
            FORMATS[target].write(record)
        return
    rows = FORMATS[target].write(record)
    assert all(row["id"] == 7 for row in rows)
    assert all(find(row, row).name == target for row in rows)
    back = [read(row).chosen_first() for row in rows]
    if target in ("pairs", "implicit", "sharegpt", "alpaca", "swift"):
        assert len(rows) == len(record.responses) - 1
        found = [shown(back[0])[1][0], *(shown(one)[1][1] for one in back)]
    else:
        (one,) = back
        found = shown(one)[1]
        if record.scores is not None:
            assert one.scores == record.scores
    assert found == shown(record)[1]


def test_numbered_columns_come_in_the_order_of_their_numbers():
    row = {"prompt": "p", "chosen": "c"} | {f"rejected{i}": str(i) for i in (10, 2, 1)}
    assert read(row).responses == ["c", "1", "2", "10"]
    row = {"prompt": "p", "chosen": "c", "rejected_1": "a", "rejected_2": None, "rejected_3": "b"}
    assert read(row).responses == ["c", "a", "b"]


def test_binarized_conversations_that_hold_the_prompt_again():
    row = {"prompt": "Say hello.", "chosen": USER + says("hello"), "rejected": USER + says("no")}
    record = read(row | {"score_chosen": 8, "score_rejected": 3.0})
    assert (record.prompt, record.responses) == (USER, [says("hello"), says("no")])
    assert record.scores == [8.0, 3.0]
    with pytest.raises(ValueError, match="different last messages"):
        read(row | {"rejected": row["chosen"]})


def test_a_conversation_in_pairs_is_no_list_of_responses():
    row = {"prompt": USER, "chosen": says("hello"), "rejected": says("no")}
    assert find(row, row).name == "pairs"
    assert read(row).responses == [says("hello"), says("no")]
    row = {"prompt": USER, "chosen": says("hello"), "rejected": [says("no"), says("hm")]}
    assert find(row, row).name == "list"
    assert len(read(row).responses) == 3


@pytest.mark.parametrize("format", ["alpaca", "sharegpt"])
def test_what_is_said_before_a_prompt_belongs_to_it(format):
    """LLaMA-Factory has columns for it: as other columns they would be lost from the prompt."""
    row = ROWS[format] | {"system": "Be kind."}
    before = [{"role": "system", "content": "Be kind."}]
    if format == "alpaca":
        row |= {"input": "Twice.", "history": [["hi", "hey"]]}
        before += [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}]
    record = read(row).chosen_first()
    last = "Say hello.\nTwice." if format == "alpaca" else "Say hello."
    assert record.prompt == [*before, {"role": "user", "content": last}]
    assert record.rest == {}
    for target in ("pairs", "alpaca", "sharegpt", "groups"):
        (written,) = FORMATS[target].write(record)
        assert read(written).chosen_first().prompt == record.prompt


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}, *USER],
    ],
)
def test_talks_that_have_no_place_in_alpaca_are_refused(prompt):
    record = read({"prompt": prompt, "chosen": "c", "rejected": "r"}).chosen_first()
    with pytest.raises(ValueError, match="user and assistant in turn"):
        FORMATS["alpaca"].write(record)


def test_pairs_whose_prompt_is_in_both():
    row = ROWS["implicit"] | {"score_chosen": 8.0, "score_rejected": 3.0}
    record = read(row)
    assert (record.prompt, record.responses) == (USER, [says("hello"), says("no")])
    assert FORMATS["implicit"].write(record) == [row]
    with pytest.raises(ValueError, match="different last messages"):
        read({"chosen": USER + says("a"), "rejected": USER + says("a")})
    with pytest.raises(ValueError, match="the same first message"):
        read({"chosen": says("a"), "rejected": says("b")})
    with pytest.raises(ValueError, match="columns of a known format"):
        read({"question": "q", "chosen": "a", "rejected": "b"})


@pytest.mark.parametrize("target", FORMATS)
def test_no_column_is_written_over(target):
    """A data set's own column of that name would be lost without a word."""
    row = ROWS["groups"] | {"id": 3}
    (own, *_) = FORMATS[target].write(read(row).chosen_first())
    new = [name for name in own if name not in (*ROWS["groups"], "id")]
    for name in new:
        with pytest.raises(ValueError, match=f"{name}: expected no such column"):
            FORMATS[target].write(read(row | {name: "mine"}).chosen_first())
        FORMATS[target].write(read(row | {name: None}).chosen_first())
    if target != "groups":
        assert new


def test_half_of_a_pair_of_scores_is_kept():
    record = read(ROWS["pairs"] | {"score_chosen": 8})
    assert record.scores is None
    assert record.rest == {"score_chosen": 8}


def test_the_best_score_is_chosen_where_nothing_says_otherwise():
    record = read({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3, 3]})
    assert record.chosen_first().responses == ["b", "a", "c"]
    assert record.chosen_first().scores == [3, 1, 3]
    with pytest.raises(ValueError, match="scores or a chosen response"):
        read({"prompt": "p", "responses": ["a", "b"]}).chosen_first()
    with pytest.raises(ValueError, match="beside the chosen one"):
        read({"prompt": "p", "responses": ["a"], "scores": [1]}).chosen_first()


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # not a number is above nothing, so that the first one would win
        ({"scores": [NAN, 0.5, 0.9]}, "scores: expected finite numbers, got nan for response 0"),
        ({"scores": [0.1, 0.5, float("inf")]}, "got inf for response 2"),
        ({"scores": [0.1, NAN, 0.9], "positive": 0}, "got nan for response 1"),
        ({"positive": -1}, "positive: expected places of 3 responses, got -1"),
        ({"positive": 3}, "positive: expected places of 3 responses, got 3"),
        ({"positive": 0.5}, "positive: expected places of 3 responses, got 0.5"),
        ({"positive": True}, "positive: expected places of 3 responses, got True"),
        ({"positive": 0, "negatives": [1, -1]}, "negatives: expected places of 3"),
        ({"positive": 0, "negatives": [1, 7]}, "negatives: expected places of 3"),
        ({"positive": 0, "negatives": [1, None]}, "negatives: expected places of 3"),
        ({"positive": 0, "negatives": [1, 0]}, "expected another response each, got 0 twice"),
        ({"negatives": [1, 2]}, "expected another response each, got 2 twice"),
        ({"responses": [], "scores": []}, "beside the chosen one"),
    ],
    ids=str,
)
def test_choices_of_what_is_not_there_are_refused(changes, message):
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [0.1, 0.5, 0.9]} | changes
    with pytest.raises(ValueError, match=message):
        read(row).chosen_first()


@pytest.mark.parametrize("wrong", [None, 5, {"role": "user", "content": "x"}, []], ids=repr)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("groups", ("prompt",)),
        ("groups", ("responses", 1)),
        ("list", ("chosen",)),
        ("list", ("rejected", 1)),
        ("numbered", ("chosen",)),
        ("pairs", ("chosen",)),
        ("nemo", ("context",)),
        ("nemo", ("completions", 1, "completion")),
        ("alpaca", ("instruction",)),
        ("alpaca", ("chosen",)),
        ("sharegpt", ("chosen", "value")),
        ("swift", ("rejected_response",)),
        ("ultrafeedback", ("completions", 1, "response")),
    ],
    ids=str,
)
def test_what_is_no_text_is_no_response(name, place, wrong):
    """Null was chosen where its score was the best, and written as the text "None"."""
    row = copy.deepcopy(ROWS[name])
    *way, last = place
    inner = row
    for step in way:
        inner = inner[step]
    inner[last] = wrong
    with pytest.raises(ValueError, match="expected"):
        FORMATS["alpaca"].write(read(row).chosen_first())


def test_a_score_of_what_is_left_out_may_be_missing():
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [0.1, NAN, 0.9]}
    record = read(row | {"positive": 2.0, "negatives": [0]}).chosen_first()  # as pandas has places
    assert (record.responses, record.scores) == (["c", "a"], [0.9, 0.1])


def test_what_is_of_no_format_names_what_it_found_and_what_is_known():
    with pytest.raises(ValueError, match=r"known format \(groups: prompt, responses; .*'answer'"):
        find(["question", "answer"])
    with pytest.raises(ValueError, match="format 'nemo', got one with no 'rank'"):
        read({"context": USER, "completions": [{"completion": says("a")}]})
    with pytest.raises(ValueError, match="one for each of 2, got 1"):
        read({"prompt": "p", "responses": ["a", "b"], "scores": [1]})
    with pytest.raises(ValueError, match="rejected: expected at least one"):
        read({"prompt": "p", "chosen": "c", "rejected": []})


def test_messages_and_texts():
    assert as_messages("hi", "user") == [{"role": "user", "content": "hi"}]
    assert as_messages(USER, "user") == USER
    assert as_text("responses", says("yes")) == as_text("responses", "yes") == "yes"


@pytest.mark.parametrize("source", ["groups", "list", "numbered", "pairs", "nemo"])
def test_chat_responses_to_a_text_make_it_a_chat(source):
    """A trainer tokenized such a response as the text "[{'role': ...", without a word."""
    given = {"prompt": "q", "positive": 0} | {
        "groups": {"responses": [says("a"), says("b")]},
        "list": {"chosen": says("a"), "rejected": [says("b")]},
        "numbered": {"chosen": says("a"), "rejected1": says("b")},
        "pairs": {"chosen": says("a"), "rejected": "b"},
        "nemo": {"context": "q", "completions": [{"rank": 0, "completion": says("a")},
                                                 {"rank": 1, "completion": "b"}]},
    }[source]  # fmt: skip
    record = read({n: v for n, v in given.items() if source != "nemo" or n != "prompt"})
    assert record.prompt == [{"role": "user", "content": "q"}]
    assert record.responses[0] == says("a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": USER, "chosen": USER + says("a"), "rejected": USER + says("b")},
         "assistant's messages, got one that begins with the role 'user'"),
        ({"chosen": USER + says("a") + USER + says("c"), "rejected":
          USER + says("a") + [{"role": "user", "content": "else"}] + says("d")}, "'user'; what is"),
        ({"prompt": USER, "chosen": [{"role": "assistant", "content": None}], "rejected": "b"},
         "responses: content: expected a text in every message"),
        ({"prompt": [{"role": "user", "content": 5}], "chosen": "a", "rejected": "b"},
         "prompt: content: expected a text in every message"),
        (ROWS["alpaca"] | {"history": ["hi"]}, r"history: expected \[question, answer\]"),
        (ROWS["alpaca"] | {"history": [["hi", "ho", "hu"]]}, r"history: expected \[question"),
        (ROWS["alpaca"] | {"history": [["hi", None]]}, r"history: expected \[question"),
        (ROWS["sharegpt"] | {"system": "a", "conversations": [{"from": "system", "value": "b"},
         *ROWS["sharegpt"]["conversations"]]}, "system: expected none beside"),
        (ROWS["sharegpt"] | {"chosen": {"from": "function_call", "value": "{}"}},
         "from: expected one of human, gpt, observation, system, got 'function_call'"),
        ({"prompt": "q", "chosen": "a", "rejected1": "b", "rejected_1": "c"},
         "rejected_1: expected another number than that of rejected1"),
        ({"prompt": "q", "chosen": "a", "rejected1": "b", "rejected01": "c"}, "rejected01: expec"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected: expected a list, got None"),
        (ROWS["swift"] | {"rejected_response": None}, "rejected_response: expected a list"),
        (ROWS["groups"] | {"scores": [1, "n/a", 2]}, "scores: expected a number, got 'n/a'"),
        (ROWS["pairs"] | {"score_chosen": "n/a", "score_rejected": 1}, "score_chosen: expected a"),
        (ROWS["ultrafeedback"] | {"completions": [{"response": "a", "overall_score": None}]},
         "overall_score: expected a number, got None"),
        (ROWS["nemo"] | {"completions": [{"rank": None, "completion": "a"}]}, "rank: expected a"),
        ({"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"},
         "two conversations, as chat messages"),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
         "give or rename a column prompt"),
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_would_be_read_as_something_else_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        read(row)


@pytest.mark.parametrize("prompt", [{}, {"prompt": "Say hello."}])
def test_fields_that_only_one_column_has_make_no_other_prompt(prompt):
    """Arrow has one type a column: all of its messages have the fields that one of them has."""
    asked = [{**USER[0], "tool_calls": None}]
    record = read({**prompt, "chosen": asked + says("a"), "rejected": USER + says("b")})
    assert (record.prompt, record.responses) == (asked, [says("a"), says("b")])


def test_ranks_are_numbers_as_texts_too():
    """As texts the tenth is before the second."""
    completions = [{"rank": rank, "completion": rank} for rank in ("10", "2", "3")]
    assert read({"context": "q", "completions": completions}).chosen_first().responses[0] == "2"


def test_a_message_of_calls_alone_says_enough():
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert read({"prompt": USER, "chosen": call, "rejected": "b"}).responses[0] == call


TOOLS = [*USER, *says("let me see"), {"role": "tool", "content": "5"}]


@pytest.mark.parametrize("target", ["alpaca", "sharegpt", "swift", "ultrafeedback"])
@pytest.mark.parametrize(
    ("response", "message"),
    [
        (says("a") + USER + says("b"), "expected a text or one message.* got 3 messages"),
        ([{**says("a")[0], "reasoning_content": "hm"}], ".* got .'reasoning_content'. beside"),
        ([{**says("a")[0], "content": None, "tool_calls": [{"name": "f"}]}],
         "content: expected a text for this format, got None"),
        ([{**says("a")[0], "content": [{"type": "text", "text": "a"}]}],
         "content: expected a text for this format"),
    ],
)  # fmt: skip
def test_what_a_format_has_no_place_for_is_refused(target, response, message):
    """Of several messages the last one was written, and of that its content alone."""
    record = read({"prompt": USER, "responses": [response, "no"], "scores": [1.0, 0.0]})
    with pytest.raises(ValueError, match=f"responses: {message}"):
        FORMATS[target].write(record.chosen_first())
    for whole in ("groups", "list", "pairs", "implicit"):
        (row, *_) = FORMATS[whole].write(record.chosen_first())
        assert read(row).chosen_first().responses[0] == response


def test_a_conversation_is_no_single_instruction():
    record = read({"prompt": USER + says("a") + USER, "responses": ["b", "c"], "scores": [1, 0]})
    with pytest.raises(ValueError, match=r"prompt: expected a text or one message.* got 3"):
        FORMATS["ultrafeedback"].write(record.chosen_first())


def test_turns_that_llama_factory_leaves_out_are_refused():
    """It skips such rows, with a line in its log; what a tool says is its "observation"."""
    row = {"chosen": "a", "rejected": "b"}
    (written,) = FORMATS["sharegpt"].write(read(row | {"prompt": TOOLS}).chosen_first())
    assert [turn["from"] for turn in written["conversations"]] == ["human", "gpt", "observation"]
    assert read(written).prompt == TOOLS
    for prompt in (USER + USER, USER + says("a"), says("a") + USER + says("b"),
                   [{"role": "developer", "content": "be kind"}, *USER]):  # fmt: skip
        record = read(row | {"prompt": prompt}).chosen_first()
        for target in ("alpaca", "sharegpt"):
            with pytest.raises(ValueError, match="prompt: expected a system message or none"):
                FORMATS[target].write(record)
