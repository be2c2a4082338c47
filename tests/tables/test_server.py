"""Sampling from a real small HTTP server on this machine, in its good and its bad hours."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast.cli import main
from pyfast.tables import http_client, stages
from pyfast.tables.http_client import Sender, ServerError
from pyfast.tables.server import Server

KEY = "sk-very-secret"


class Fake:
    """An OpenAI-compatible server that answers as `script` says, then as it should."""

    def __init__(self):
        self.requests, self.script, self.most, self.now = [], [], 0, 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                with fake.lock:
                    fake.requests.append((self.path, dict(self.headers), body))
                    step = fake.script.pop(0) if fake.script else "good"
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                self.open = True
                try:
                    fake.answer(self, body, step)
                finally:
                    self.leave()

            def leave(self):
                """Count out, before the answer: whoever has read it may ask again at once."""
                with fake.lock:
                    fake.now -= self.open
                    self.open = False

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.reply = fake_choices

    def answer(self, handler, body, step):
        if callable(step):
            step = step(body)
        if step == "dies":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if step == "hangs":
            time.sleep(1.5)
            return
        status, content, headers = 200, None, {}
        if isinstance(step, tuple):
            status, content, *more = step
            headers = more[0] if more else {}
        if content is None:
            content = json.dumps({"choices": self.reply(body)})
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        handler.leave()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        cut = step == "cut"
        handler.send_header("Content-Length", str(len(content) + (50 if cut else 0)))
        handler.end_headers()
        handler.wfile.write(content)


def fake_choices(body):
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    n, start = body.get("n", 1), body.get("seed", 0)
    texts = [f"{asked} / {start + i}" for i in range(n)]
    reasons = ["length" if i % 2 else "stop" for i in range(n)]
    return [
        {"index": i, "finish_reason": reason}
        | ({"message": {"role": "assistant", "content": t}} if "messages" in body else {"text": t})
        for i, (t, reason) in enumerate(zip(texts, reasons, strict=True))
    ][::-1]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(http_client, "_FIRST_WAIT", 0.01)
    made = Fake()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_several_responses_in_one_request(fake):
    table = pa.table({"id": [1, 2, 3], "prompt": ["a", "b", "c"]})
    sampler = Server(fake.url, "tiny", n=3, max_tokens=7, extra={"top_p": 0.5}, key=KEY)
    found = stages.sample(table, sampler)
    assert found["responses"].to_pylist() == [[f"{p} / {i}" for i in range(3)] for p in "abc"]
    assert found["finish_reasons"].to_pylist() == [["stop", "length", "stop"]] * 3
    assert found["id"].to_pylist() == [1, 2, 3]
    assert len(fake.requests) == 3
    path, headers, body = fake.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["n"], body["max_tokens"], body["top_p"]) == ("tiny", 3, 7, 0.5)
    assert "seed" not in body


def test_messages_and_texts_and_paths(fake):
    turns = [[{"role": "system", "content": "be brief", "name": None},
              {"role": "user", "content": "hi", "name": "ann"}]]  # fmt: skip
    table = pa.table({"prompt": pa.array(turns)})
    stages.sample(table, Server(fake.url + "/api/v2/", "tiny", n=1))
    path, headers, body = fake.requests[-1]
    assert path == "/api/v2/chat/completions"
    assert "Authorization" not in headers
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    bare = Server(fake.url + "/v1/completions?version=1", "tiny", n=2, chat=False)
    found = stages.sample(pa.table({"prompt": ["once"]}), bare)
    assert fake.requests[-1][0] == "/v1/completions?version=1"
    assert found["responses"].to_pylist() == [["once / 0", "once / 1"]]
    with pytest.raises(ServerError, match="row 0: expected a text as prompt"):
        stages.sample(table, bare)


@pytest.mark.parametrize("gives", ["one", "two"])
def test_a_server_that_gives_fewer_is_asked_again(fake, gives):
    few = 1 if gives == "one" else 2
    fake.reply = lambda body: sorted(fake_choices(body), key=lambda c: c["index"])[:few]
    found = stages.sample(pa.table({"prompt": ["a"]}), Server(fake.url, "tiny", n=5, seed=40))
    assert found["responses"].to_pylist() == [[f"a / {i}" for i in range(40, 45)]]
    assert len(fake.requests) == 5 // few + 5 % few


@pytest.mark.parametrize("index", [lambda i: i % 3, lambda i: 0, lambda i: None])
def test_more_choices_than_were_asked_for_double_none(fake, index):
    """Whatever places a server gives them: the first n are taken, in its order."""
    fake.reply = lambda body: [
        {"index": index(i), "message": {"content": f"r{i}"}, "finish_reason": "stop"}
        for i in range(9)
    ]
    found = stages.sample(pa.table({"prompt": ["a"]}), Server(fake.url, "tiny", n=3))
    assert found["responses"].to_pylist() == [["r0", "r1", "r2"]]


def test_an_answer_that_is_nested_too_deeply_is_an_error_of_the_server(fake):
    fake.script = [(200, '{"choices": ' + "[" * 100_000 + "]" * 100_000 + "}")]
    with pytest.raises(ServerError, match="row 0: expected an answer not nested so deeply"):
        Server(fake.url, "tiny", n=1, retries=0)(["a"])


def test_a_server_that_refuses_several_is_asked_one_by_one(fake):
    def refuse(body):
        return (400, {"error": {"message": "n: only one choice"}}) if "n" in body else "good"

    fake.script = [refuse] * 20
    sampler = Server(fake.url, "tiny", n=3, seed=0, concurrency=1)
    found = stages.sample(pa.table({"prompt": ["a", "b"]}), sampler)
    assert found["responses"].to_pylist() == [[f"{p} / {i}" for i in range(3)] for p in "ab"]
    assert ["n" in body for *_, body in fake.requests] == [True] + [False] * 6


def test_the_other_name_of_the_length(fake):
    def refuse(body):
        said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return (400, {"error": {"message": said}}) if "max_tokens" in body else "good"

    fake.script = [refuse] * 20
    sampler = Server(fake.url, "tiny", n=2, max_tokens=9, concurrency=1)
    assert len(sampler(["a", "b"])) == 2
    assert fake.requests[-1][2]["max_completion_tokens"] == 9
    assert len(fake.requests) == 3


def broken_off():
    """Answers of status 200 that are none: a server says so in several ways."""
    said = {"index": 0, "message": {"content": "half an ans"}, "text": "half an ans"}
    whole = {**said, "index": 1, "finish_reason": "stop"}
    for reason in ("error", "abort", "cancelled", "FAILED"):
        yield {"choices": [{**said, "finish_reason": reason}, whole]}
    yield {"choices": [{**said, "finish_reason": None, "error": {"code": 502}}]}
    yield {"choices": [whole], "error": {"code": 503, "message": "upstream went away"}}
    yield {"error": {"message": "overloaded", "code": "overloaded"}}
    yield {"object": "error", "message": "engine died", "code": 500}


@pytest.mark.parametrize(
    "trouble",
    ["dies", "cut", "hangs", (429, {"error": "slow down"}, {"Retry-After": "0.01"}), (500, "oops"),
     (503, ""), (200, '{"choices": [{"index"'), (200, ""),
     (200, '{"choices": [{"message": {"content": "caf\u00e9'.encode()[:-1]),
     *((200, answer) for answer in broken_off())],
    ids=str,
)  # fmt: skip
def test_what_may_pass_is_tried_again(fake, trouble):
    fake.script = [trouble, "good", trouble]
    sampler = Server(fake.url, "tiny", n=2, timeout=0.5, concurrency=1)
    found = sampler(["a", "b"])
    assert [drawn.responses for drawn in found] == [["a / 0", "a / 1"], ["b / 0", "b / 1"]]
    assert len(fake.requests) == 4
    fake.script = [trouble] * 9
    with pytest.raises(ServerError, match=r"row 1: http.*: tried 2 times; "):
        Server(fake.url, "tiny", n=1, timeout=0.3, retries=1, concurrency=1)(_after_one(fake))


def test_a_long_wait_is_told(fake, capsys):
    stop = threading.Event()
    stop.set()
    for seconds, told in (("86400", "slow down; again in 60 s"), ("1", "")):
        fake.script = [(429, {"error": "slow down"}, {"Retry-After": seconds})]
        with pytest.raises(ServerError, match="stopped"):
            Sender(None, timeout=5, retries=1).send(fake.url, {}, stop)
        said = capsys.readouterr().err
        assert told in said
        assert bool(told) == bool(said)


def _after_one(fake):
    fake.script.insert(0, "good")
    return ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {"error": {"message": "The model `huge` is not here."}}), "404: The model `huge`"),
        ((401, {"detail": "no key"}), "status 401: no key"),
        ((400, {"error": {"message": "prompt too long"}}), "status 400: prompt too long"),
        ((429, {"error": {"message": "insufficient_quota"}}), "status 429: insufficient_quota"),
        ((302, "", {"Location": "http://elsewhere/"}), "redirects to http://elsewhere/; give that"),
        ((200, "<html>hello</html>"), "expected JSON, got <html>"),
        ((200, '{"choices": "caf\u00e9"}'.encode("latin-1")), "expected JSON in UTF-8 .*byte 0xe9"),
        ((200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), "answers packed as gzip, unasked"),
        ((404, "\x1b]0;mine\x07 \u009b2J \u202e"), r"404: \\x1b\]0;mine\\x07 \\x9b2J \\u202e"),
        ((200, {"object": "error"}), "expected choices, got"),
        ((200, {"choices": []}), "expected at least one choice, got none"),
        ((200, {"choices": [3]}), "expected a choice, got 3"),
        ((200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
         "no text .finish_reason 'length'"),
        ((200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
         "no text .finish_reason 'content_filter'"),
        ((200, {"error": {"code": 400, "message": "too long"}}), "row 1: .*too long"),
        ((200, {"object": "error", "code": 404, "message": "no model"}), "row 1: .*no model"),
        ((200, {"choices": [{"message": {"content": "cut"}, "finish_reason": "content_filter"}]}),
         "not all, what the model said .finish_reason 'content_filter'.: cut"),
        ((200, {"choices": [{"message": {"content": "I"}, "finish_reason": "tool_calls"}]}),
         "not all, what the model said .finish_reason 'tool_calls'"),
        ((200, {"choices": [{"message": {"content": [1]}}]}), "expected a text as content"),
        ((200, {"choices": [{"message": {"content": "\ud83d"}}]}), "no text of Unicode"),
    ],
    ids=str,
)  # fmt: skip
def test_what_will_not_pass_is_told_at_once(fake, answer, message):
    fake.script = ["good", *[answer] * 9]
    with pytest.raises(ServerError, match=message) as error:
        Server(fake.url, "tiny", n=2, key=KEY, concurrency=1)(["a", "b"])
    assert "row 1: " in str(error.value)
    assert KEY not in str(error.value)
    assert len(fake.requests) <= 3


def test_empty_ones_are_kept_where_that_is_asked_for(fake):
    fake.script = [(200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]})]
    (drawn,) = Server(fake.url, "tiny", n=2, keep_empty=True)(["a"])
    assert (drawn.responses, drawn.finish_reasons) == (["", "a / 0"], ["length", "stop"])


def test_no_server_at_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match="tried 1 times; ConnectionRefusedError"):
        Server(f"http://127.0.0.1:{port}", "tiny", retries=0)(["a"])


def test_no_proxy_stands_before_this_machine_and_another_ones_is_told(fake, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:word@127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for url in (fake.url, fake.url.replace("127.0.0.1", "localhost")):
        (drawn,) = Server(url, "tiny", n=1, retries=0)(["a"])
        assert drawn.responses == ["a / 0"]
    told = r"192\.0\.2\.1/.* \(through the environment's proxy 127\.0\.0\.1\): tried 1 times; Conn"
    with pytest.raises(ServerError, match=told) as error:
        Server("http://192.0.2.1", "tiny", retries=0)(["a"])
    assert "word" not in str(error.value)
    monkeypatch.setenv("no_proxy", "192.0.2.1")
    assert http_client.proxy_of("http://192.0.2.1/v1") is None


def test_no_more_requests_at_a_time_than_said(fake):
    fake.script = [lambda body: time.sleep(0.02) or "good"] * 40
    found = Server(fake.url, "tiny", n=1, concurrency=3)([str(i) for i in range(20)])
    assert [drawn.responses[0] for drawn in found] == [f"{i} / 0" for i in range(20)]
    assert 1 < fake.most <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8000"}, "url: expected http"),
        ({"url": "http://me:word@host"}, "url: expected no user"),
        ({"url": "http://host:port"}, "url: "),
        ({"url": "http://a b"}, "url: expected http"),
        ({"url": "http://host/\u00e4"}, "url: expected http.* in ASCII"),
        ({"n": 0}, "n: expected at least 1"),
        ({"n": True}, "n: expected an int"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"temperature": -1.0}, "temperature: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"timeout": 0.0}, "timeout: "),
        ({"concurrency": 0}, "concurrency: "),
        ({"extra": {"n": 2}}, "extra: n has an argument"),
        ({"extra": {"x": float("nan")}}, "model and extra: expected what JSON holds"),
        ({"key": "a\nb"}, "key: expected one line"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Server(**{"url": "http://host", "model": "tiny"} | changes)


# --- the command ---------------------------------------------------------------------------------


def prompts(path, count):
    rows = [{"id": i, "prompt": f"p{i}"} for i in range(count)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_costs_one_unit(fake, tmp_path, capsys, monkeypatch, suffix, kind):
    source = prompts(tmp_path / f"in{suffix}", 12)
    out = tmp_path / (f"out{suffix}" if kind == "file" else "out")
    monkeypatch.setenv("THE_KEY", KEY)
    command = ["sample", str(source), "--server", fake.url, "--model", "tiny", "--n", "2",
               "--key-env", "THE_KEY", "--retries", "0", "--concurrency", "1", "--rows", "3",
               "--out", str(out)]  # fmt: skip
    fake.script = ["good"] * 7 + [(500, "oops")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "status 500: oops" in said
    assert ("in.jsonl:8: " if suffix == ".jsonl" else "row group 1, row 2 of a batch: ") in said
    assert "--debug" not in said
    assert main(command) == 0
    asked = [body["messages"][0]["content"] for *_, body in fake.requests]
    redone = {".jsonl": ["p6", "p7"], ".parquet": ["p5", "p6", "p7"]}[suffix]  # units of one group
    assert sorted(asked) == sorted([f"p{i}" for i in range(12)] + redone)
    files = [out] if kind == "file" else sorted(out.glob(f"*{suffix}"))
    found = [row for path in files for row in read(path)]
    assert [row["id"] for row in found] == list(range(12))
    assert [row["responses"] for row in found] == [[f"p{i} / 0", f"p{i} / 1"] for i in range(12)]
    text = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert KEY not in text + capsys.readouterr().err
    if kind == "file":
        assert not out.with_name(out.name + ".parts").exists()
        assert main(command) == 2
        assert "is there already" in capsys.readouterr().err
    else:
        count = len(fake.requests)
        assert main(command) == 0
        assert len(fake.requests) == count
        assert main([*command, "--temperature", "0.5"]) == 2
        assert "outputs of other settings" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["out.jsonl", "out"])
def test_a_mistake_before_anything_is_sampled_keeps_nobody_from_mending_it(
    fake, tmp_path, capsys, out
):
    source = prompts(tmp_path / "in.jsonl", 2)
    command = ["sample", str(source), "--n", "1", "--retries", "0", "--out", str(tmp_path / out)]
    fake.script = [(404, "no such model")] * 2
    assert main([*command, "--server", fake.url, "--model", "tinny"]) == 2
    assert "no such model" in capsys.readouterr().err
    assert main([*command, "--server", f"{fake.url}/v1", "--model", "tiny"]) == 0
    assert all(body["model"] == "tiny" for _, _, body in fake.requests[-2:])


def test_ctrl_c_loses_and_doubles_nothing(fake, tmp_path):
    source, out = prompts(tmp_path / "in.jsonl", 30), tmp_path / "out.jsonl"
    fake.script = [lambda body: time.sleep(0.02) or "good"] * 20 + [lambda b: time.sleep(30)] * 5
    command = [sys.executable, "-m", "pyfast.cli", "sample", str(source), "--server", fake.url,
               "--model", "tiny", "--n", "2", "--concurrency", "2", "--rows", "4",
               "--out", str(out)]  # fmt: skip
    for how in (signal.SIGINT, signal.SIGKILL):
        before = len(fake.requests)
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(fake.requests) < before + 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, how)
        process.communicate(timeout=20)  # it does not wait for requests under way
        assert process.returncode == (130 if how == signal.SIGINT else -9)
        assert not out.exists()
    fake.script = []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in read(out)] == list(range(30))
    asked = [body["messages"][0]["content"] for *_, body in fake.requests]
    assert len(asked) < 30 + 2 * 8  # two units at most were made again


def test_our_own_sampler(tiny_model, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "tell me about the day"}\n{"prompt": "tell me about a dog"}\n')
    settings = ["--model", str(tiny_model), "--n", "3", "--max-new-tokens", "6"]
    found = []
    for name, rows in (("a", "1"), ("b", "2")):
        out = tmp_path / f"{name}.jsonl"
        command = ["sample", str(source), *settings, "--rows", rows, "--out", str(out)]
        assert main(command) == 0
        found.append(read(out))
    assert found[0] == found[1]  # whatever batch a prompt comes in
    for row in found[0]:
        assert len(row["responses"]) == 3
        assert len(row["token_ids"]) == 3
        cut = [len(ids) == 6 and ids[-1] != 3 for ids in row["token_ids"]]
        assert row["finish_reasons"] == ["length" if c else "stop" for c in cut]
    assert main(["sample", str(source), *settings, "--seed", "1", "--out", "-"]) == 0
    other = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["token_ids"] for row in other] != [row["token_ids"] for row in found[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "nowhere"], "--server: expected http"),
        (["--server", "http://h", "--key-env", "NO_SUCH_KEY"], "--key-env: the environment has no"),
        (["--server", "http://h", "--extra", "[1]"], "--extra: expected a JSON object"),
        (["--server", "http://h", "--extra", "{"], "--extra: expected JSON"),
        (["--server", "http://h", "--n", "0"], "--n: expected at least 1"),
        (["--server", "http://h", "--max-new-tokens", "0"], "--max-new-tokens: expected"),
        (["--rows", "0"], "--rows: expected at least 1"),
        (["--extra", "{}"], "--extra: expected only with --server"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, arguments, message):
    source = prompts(tmp_path / "in.jsonl", 1)
    assert main(["sample", str(source), "--model", "tiny", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
