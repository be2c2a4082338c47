"""The page in a real browser, as a person uses it: keys, clicks, windows, sizes."""

import os

import pytest
import waiting_run
from serving import serving
from waiting_run import Question

pytest.importorskip("starlette", reason="the page needs the extra: pip install '.[label]'")
pytest.importorskip("uvicorn", reason="the page needs the extra: pip install '.[label]'")
if os.name == "nt":
    pytest.skip("the browser is driven over pipes of Unix", allow_module_level=True)
import browser as browsers

from pyfast.label.desk import Desk, Run

pytestmark = pytest.mark.skipif(
    browsers.find() is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)

HTML = """<script>window.evil = 1</script><img src=x onerror="window.evil = 2">
<b onmouseover="window.evil = 3">bold</b> <style>body{display:none}</style>
</div></article><iframe src="javascript:parent.evil=4"></iframe>
[click](javascript:window.evil=5) ![see](http://127.0.0.1:9/x.png) **strong** & &lt;i&gt;"""
RTL = "שלום! זו תשובה ארוכה בעברית, עם English באמצע.\n\nمرحبا، هذا جواب بالعربية."  # noqa: RUF001
LONG = "\n\n".join(f"Paragraph {i}: " + "a sentence that goes on and on. " * 12 for i in range(30))
WIDE = "unbreakable" * 60
PAIRS = [
    Question("which one?", HTML, "harmless"),
    Question([{"role": "system", "content": HTML}, {"role": "user", "content": RTL}], RTL, LONG),
    Question(WIDE, WIDE, "| a | b |\n|---|---|\n| 1 | " + "x" * 200 + " |\n\n```\n" + "y" * 300),
    *(Question(f"prompt {i}", f"response {i} x", f"response {i} y") for i in range(4)),
]
COUNT = "document.getElementById('count').textContent"
PROMPT = "document.getElementById('prompt').innerText"
NOTICE = "document.getElementById('notice').innerText"
PAUSE = "performance.now() - shownAt >= PAUSE && !busy"


@pytest.fixture(scope="module")
def browser():
    found = browsers.Browser()
    yield found
    found.close()


@pytest.fixture
def run(tmp_path):
    return waiting_run.make(tmp_path, PAIRS)


@pytest.fixture
def link(run):
    with serving(Desk(Run(run), "ann", via="page")) as port:
        yield f"http://127.0.0.1:{port}/?token=secret"


def opened(browser, link, **options):
    tab = browser.new_tab(**options)
    tab.open(link)
    tab.until(f"location.href == {link!r} && document.readyState == 'complete'")
    tab.until(f"{COUNT} && {PAUSE}")
    return tab


def pair(number):
    return f"{COUNT}.startsWith('Pair {number} of 7') && {PAUSE}"


def answers(run):
    return [line["answer"] for line in waiting_run.annotations(run)]


def test_by_keyboard_alone(browser, run, link):
    tab = opened(browser, link)
    shown = tab.js("document.getElementById('response-1').textContent")
    tab.press("1")
    tab.until(pair(2))
    (line,) = waiting_run.annotations(run)
    question = next(question for question in PAIRS if question.key == line["id"])
    assert shown == getattr(question, line["answer"])  # what was seen as 1 is what was written
    tab.press("2")
    tab.until(pair(3))
    tab.press("s")
    tab.until(pair(4))
    tab.press("u")
    tab.until(pair(3))
    assert answers(run)[2:] == ["skip", None]
    tab.press("1", modifiers=2)  # Ctrl-1 is the browser's
    tab.press("x")
    for _ in range(3):  # the buttons are reached by Tab: first, second, skip
        tab.press("Tab")
    assert tab.js("document.activeElement.id") == "skip"
    assert len(answers(run)) == 4
    tab.press("Enter")
    tab.until(pair(4))
    assert answers(run)[4:] == ["skip"]
    for number in range(4, 8):
        tab.until(pair(number))
        tab.press("1")
    tab.until("!document.getElementById('end').hidden")
    assert "has every label that it waits for" in tab.js("document.body.innerText")
    assert "kappa" not in tab.js("document.body.innerText")
    assert tab.complaints() == []
    bob = Desk(Run(run), "bob", via="terminal")
    bob.answer(bob.look().shown.id, "1")
    tab.js("dispatchEvent(new Event('focus'))")
    tab.until("document.getElementById('agreement').innerText.includes('ann - bob')")
    assert len(waiting_run.take(run, PAIRS)) == 7


def test_a_double_click_labels_one_pair(browser, run, link):
    tab = opened(browser, link)
    tab.click("choose-2", times=2)
    tab.until(pair(2))
    tab.click("choose-1", times=3)
    tab.until(pair(3))
    assert len(answers(run)) == 2
    tab.js("for (let i = 0; i < 9; i++) { choose('1'); ask('api/answer', {id: 'x', choice: '1'}) }")
    tab.until(pair(4))
    assert len(answers(run)) == 3
    tab.click("choose-1")
    tab.until(pair(5))
    tab.click("choose-1", first=2)  # the second half of a double click, when the next is shown
    tab.js("shownAt = performance.now(); choose('1')")  # a key that bounces
    assert tab.js("busy") is False
    assert len(answers(run)) == 4
    tab.until(PAUSE)
    tab.click("undo", times=2)
    tab.until(pair(4))
    tab.click("undo", first=2)
    assert tab.js("busy") is False
    assert answers(run)[4:] == [None]


def test_a_reload_shows_the_same(browser, run, link):
    tab = opened(browser, link)
    tab.press("1")
    tab.until(pair(2))
    seen = tab.js("document.querySelector('main').innerText")
    tab.js("window.old = 1")
    tab.send("Page.reload")
    tab.until(f"!window.old && document.readyState == 'complete' && {pair(2)}")
    assert tab.js("document.querySelector('main').innerText") == seen
    assert len(answers(run)) == 1
    tab.press("u")  # undoing goes on after a reload
    tab.until(pair(1))


def test_a_second_window_changes_nothing_that_stands(browser, run, link):
    one, other = opened(browser, link), opened(browser, link)
    one.js("choose('1')")
    one.until(pair(2))
    other.js("choose('2')")  # of a pair that has its answer: it is told, and the next one shown
    other.until(pair(2))
    assert "That pair has your answer already: response 1. It stands." in other.js(NOTICE)
    assert len(answers(run)) == 1
    other.js("choose('s')")
    other.until(pair(3))
    assert other.js(NOTICE) == ""
    one.js("dispatchEvent(new Event('focus'))")
    one.until(pair(3))


def test_a_server_that_ends_is_told(browser, run):
    with serving(Desk(Run(run), "ann", via="page")) as port:
        tab = opened(browser, f"http://127.0.0.1:{port}/?token=secret")
    tab.press("1")
    tab.until(f"{NOTICE}.startsWith('No answer from pyfast label')")
    assert tab.js(COUNT).startswith("Pair 1 of 7")
    assert answers(run) == []


@pytest.mark.parametrize("markdown", [False, True])
def test_what_models_wrote_stays_text(browser, run, link, markdown):
    tab = opened(browser, link)
    if tab.js("markdown") is not markdown:
        tab.press("m")
        tab.until(f"markdown === {str(markdown).lower()} && {PAUSE}")
    for number in range(1, 8):
        tab.until(pair(number))
        text = tab.js("document.querySelector('main').innerText")
        tags = set(tab.js("[...document.querySelectorAll('main *')].map(e => e.localName)"))
        assert not tags & {"script", "img", "iframe", "style", "b"}
        assert tab.js("window.evil") is None
        assert tab.js("[...document.querySelectorAll('main a')].every(a => /^http/.test(a.href))")
        if "harmless" in text:
            assert '<img src=x onerror="window.evil = 2">' in text
            assert ("**strong**" in text) is not markdown
        tab.press("1")
    tab.until("!document.getElementById('end').hidden")
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_window(browser, run, link, width):
    tab = opened(browser, link, width=width, height=700)
    for number in range(1, 8):
        tab.until(pair(number))
        assert tab.js("document.documentElement.scrollWidth") <= width
        bottom = tab.js("document.querySelector('footer').getBoundingClientRect().bottom")
        assert bottom <= 700  # the buttons are there without scrolling
        sizes = tab.js("[...document.querySelectorAll('button')].map(b => b.offsetHeight)")
        assert min(sizes) >= 40  # a finger's
        tab.press("s")
    tab.until("!document.getElementById('end').hidden")


def test_directions_and_colours(browser, run, link):
    for dark in (False, True):
        tab = opened(browser, link, dark=dark)
        red = tab.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (int(red) < 100) is dark
    for number in range(1, 8):
        tab.until(pair(number))
        shown = tab.js(
            "[...document.querySelectorAll('.text')]"
            ".map(e => [e.textContent, e.matches(':dir(rtl)')])"
        )
        assert all(is_rtl == text.startswith("שלום") for text, is_rtl in shown)
        tab.press("s")


def test_a_wrong_token_shows_no_pair(browser, link):
    tab = browser.new_tab()
    tab.open(link + "x")
    tab.until("document.body && document.body.innerText.includes('token is missing or wrong')")
