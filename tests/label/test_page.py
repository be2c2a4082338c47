"""The page's server: who may speak to it, what it takes, and what models wrote in it."""

import html.parser
import os
import re
import signal
import subprocess
import sys

import pytest
import waiting_run
from serving import Client, serving
from waiting_run import Question

from pyfast import cli
from pyfast.label.desk import Desk, Run

pytest.importorskip("starlette", reason="the page needs the extra: pip install '.[label]'")
pytest.importorskip("uvicorn", reason="the page needs the extra: pip install '.[label]'")
from pyfast.label import markdown, page

NASTY = """<script>alert(1)</script><img src=x onerror=alert(2)>
<a href="javascript:alert(3)">x</a> [a](javascript:alert(4)) [b](JaVaScRiPt:alert(5))
[c](data:text/html;base64,PHNjcmlwdD4=) [d](&#106;avascript:alert(6)) ![e](http://evil.example/x.png)
<svg/onload=alert(7)> <style>*{display:none}</style> <iframe srcdoc="<script>alert(8)</script>">
[f](https://example.org/" onmouseover="alert(9)) <http://example.org/"onclick=alert(10)>
```html" onload="alert(11)
<b>code</b>
```
| a | <i>b</i> |
|---|---|
| 1 | 2 |
"""


@pytest.fixture
def run(tmp_path):
    return waiting_run.make(tmp_path)


@pytest.fixture
def client(run):
    with serving(Desk(Run(run), "ann", via="page")) as port:
        yield Client(port)


def shown(client):
    return client("GET", "/api/view")[2]


def test_what_is_served(client):
    for path, kind in (
        ("/?token=secret", "html"),
        ("/page.css", "css"),
        ("/page.js", "javascript"),
    ):
        status, headers, content = client("GET", path, Authorization=None)
        assert status == 200
        assert kind in headers["content-type"]
        assert content == (page.STATIC / page.FILES[path.partition("?")[0]][0]).read_bytes()
    assert client("GET", "/other")[0] == 404
    view = shown(client)
    assert (view["done"], view["total"], view["waiting"], view["last"]) == (0, 6, 6, None)
    assert re.fullmatch(
        r"response \d x", sorted(r["text"] for r in view["question"]["responses"])[0]
    )


def test_the_page_asks_for_nothing_from_elsewhere():
    for path in page.STATIC.iterdir():
        assert not re.search(r"https?://|//[a-z]", path.read_text().replace("// ", "")), path
    assert {path.name for path in page.STATIC.iterdir()} == {
        name for name, _ in page.FILES.values()
    }


def test_every_answer_has_its_headers(client):
    for path in ("/?token=secret", "/?token=no", "/page.js", "/api/view", "/nothing"):
        headers = client("GET", path)[1]
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.",
        "",
        "127.0.0.1:x",
        "[::2]",
        "0.0.0.0",
        "169.254.1.1",
    ],
)
@pytest.mark.parametrize("path", ["/?token=secret", "/page.js", "/api/view"])
def test_other_hosts_are_refused(client, path, host):
    status, _, content = client("GET", path, host=host)
    assert (status, "this machine alone" in content["error"]) == (403, True)


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:9"])
def test_a_forwarded_port_is_no_other_host(client, host):
    assert client("GET", "/api/view", host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": None},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_origins_are_refused(client, run, headers):
    key = shown(client)["question"]["id"]
    status, _, content = client("POST", "/api/answer", {"id": key, "choice": "1"}, **headers)
    assert status == 403
    assert "rigin" in content["error"] or "another site" in content["error"]
    assert waiting_run.annotations(run) == []


def test_other_sites_may_not_look_either(client):
    assert client("GET", "/api/view", Origin="http://evil.example")[0] == 403
    assert client("GET", "/api/view", Sec_Fetch_Site="cross-site")[0] == 403
    assert client("OPTIONS", "/api/answer", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer wrong", "secret", "Bearer secret ", None])
def test_without_the_token_nothing(client, run, token):
    token = token.strip() + "x" if token and token.endswith(" ") else token
    assert client("GET", "/api/view", Authorization=token)[0] == 403
    status, _, content = client("POST", "/api/undo", {"place": 0}, Authorization=token)
    assert (status, "token is missing or wrong" in content["error"]) == (403, True)
    for query in ("", "?token=", "?token=wrong", "?token=secret&token=secret", "?t=secret"):
        assert client("GET", f"/{query}")[0] == 403


def test_answers_and_undoing(client, run):
    first = shown(client)["question"]["id"]
    status, _, view = client("POST", "/api/answer", {"id": first, "choice": "1"})
    assert (status, view["done"]) == (200, 1)
    second = view["question"]["id"]
    status, _, again = client("POST", "/api/answer", {"id": first, "choice": "2"})  # sent again
    assert (status, again["question"]["id"]) == (409, second)
    assert "has your answer already: response 1" in again["error"]
    assert len(waiting_run.annotations(run)) == 1
    status, _, view = client("POST", "/api/undo", {"place": view["last"]})
    assert (status, view["question"]["id"], view["done"]) == (200, first, 0)
    status, _, view = client("POST", "/api/undo", {"place": 0})
    assert (status, view["question"]["id"]) == (409, first)
    assert [line["answer"] is None for line in waiting_run.annotations(run)] == [False, True]
    assert {line["via"] for line in waiting_run.annotations(run)} == {"page"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/answer", b""),
        ("/api/answer", b"[1]"),
        ("/api/answer", b"\xff"),
        ("/api/answer", b'{"id": "x"}'),
        ("/api/answer", b'{"id": "x", "choice": 1}'),
        ("/api/answer", b'{"id": "x", "choice": "1"}'),
        ("/api/answer", b'{"id": "x", "choice": "1", "more": 1}'),
        ("/api/answer", b'{"id": "x", "id": "x", "choice": "1"}'),
        ("/api/answer", b"[" * 60_000),
        ("/api/answer", b" " * 70_000),
        ("/api/undo", b'{"place": true}'),
        ("/api/undo", b'{"place": "0"}'),
    ],
)
def test_what_is_no_request_is_refused(client, run, path, body):
    status, _, content = client("POST", path, body)
    assert (status, list(content)) == (400, ["error"])
    assert waiting_run.annotations(run) == []


def test_a_form_of_another_page_is_refused(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert client("POST", "/api/undo", {"place": 0}, Content_Type=kind)[0] == 400


def test_a_full_disk_is_told_and_nothing_is_shown_as_kept(client, run, monkeypatch):
    import errno

    from pyfast.train.recipes.active_dpo import human_labels

    def full(file, path, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    key = shown(client)["question"]["id"]
    with monkeypatch.context() as patched:
        patched.setattr(human_labels, "reserve", full)
        status, _, content = client("POST", "/api/answer", {"id": key, "choice": "1"})
    assert (status, list(content)) == (507, ["error"])
    assert "No space left" in content["error"]
    assert shown(client)["question"]["id"] == key


class Elements(html.parser.HTMLParser):
    """Collects the elements and attributes of HTML."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.links = set(), set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name == "href"]


def test_markdown_has_no_html_of_the_models():
    found = Elements()
    found.feed(markdown.render(NASTY))
    assert found.tags <= {
        "p",
        "a",
        "pre",
        "code",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "em",
    }
    assert found.attributes <= {"href", "target", "rel", "class", "title"}
    assert found.links
    assert all(re.match("https?://", link) for link in found.links)
    assert "<strong>bold</strong>" in markdown.render("**bold**")
    assert "<s>gone</s>" in markdown.render("~~gone~~")
    assert markdown.render("<" * (markdown.LONGEST + 1)).startswith("<pre>&lt;")
    assert len(markdown.render("> " * 5000 + "deep")) > 0


def test_markdown_only_on_wish(tmp_path):
    run = waiting_run.make(
        tmp_path, [Question([{"role": "user", "content": NASTY}], NASTY, "**b**")]
    )
    with serving(Desk(Run(run), "ann", via="page")) as port:
        client = Client(port)
        question = shown(client)["question"]
        texts = [question["prompt"][0], *question["responses"]]
        assert {part["text"] for part in texts} == {NASTY, "**b**"}
        assert all("html" not in part for part in texts)
        question = client("GET", "/api/view?markdown=1")[2]["question"]
        assert all("<script" not in part["html"] for part in question["responses"])
        assert question["prompt"][0]["role"] == "user"


def test_the_command_prints_a_link_and_ends_with_ctrl_c(run):
    command = [sys.executable, "-m", "pyfast.cli", "label", str(run), "--web"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    link = process.stdout.readline().strip()
    port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})", link).groups()
    client = Client(int(port), token)
    key = shown(client)["question"]["id"]
    assert client("POST", "/api/answer", {"id": key, "choice": "1"})[0] == 200
    assert len(waiting_run.annotations(run)) == 1
    busy = ["label", str(run), "--web", "--port", port]
    assert cli.main(busy) == 2
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "waits for 5 more labels" in out
    assert token not in errors


@pytest.mark.parametrize("port", ["-1", "70000"])
def test_ports_that_are_none(run, capsys, port):
    assert cli.main(["label", str(run), "--web", "--port", port]) == 2
    assert f"--port {port}: " in capsys.readouterr().err
