"""Formulas of the docs as MathML, and what docstrings say in reST."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml")
pytest.importorskip("markdown")
PATH = Path(__file__).parents[2] / "docs" / "markup.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page():
    import markdown

    module = load(PATH)
    return lambda text: markdown.markdown(text, extensions=[module.Markup(), "tables"])


def test_inline_and_display(page):
    html = page("a $x_i$ b\n\n$$\n\\min_{j} d_{ij}\n$$\n\nc")
    assert html.count("<math") == 2
    assert "<munder>" in html
    assert html.count('class="formula"') == 1


def test_functions_stand_apart_from_names_alone(page):
    for tex, spaces in (("\\log \\pi_{ref} + \\log x", 2), ("\\log(x)", 0), ("\\beta h", 0)):
        assert page(f"${tex}$").count("<mspace") == spaces


def test_money_and_code_are_left_alone(page):
    html = page("5 $ and 6 $ cost, `$x$` too")
    assert "<math" not in html


def test_unknown_commands_stop_the_build(page):
    with pytest.raises(ValueError, match="not a formula that latex2mathml knows"):
        page("$\\nonsense x$")


def test_a_formula_may_go_on_in_the_next_line(page):
    assert page("with $h_i = \\log\n\\pi$, and").count("<math") == 1


def test_docstrings_need_no_rest(page):
    html = page(
        "As :func:`~pyfast.kmedoids` of the pool::\n\n    s = 1\n\n.. math:: a_i =\n    b_i\n\nEnd."
    )
    assert "<code>pyfast.kmedoids</code>" in html
    assert "<pre><code>s = 1" in html
    assert html.count("<math") == 1
    assert ":func:" not in html
    assert "::" not in html
    assert "End." in html


def test_formulas_within_a_docstrings_line(page):
    html = page("with :math:`\\bar r` the mean, :math:`[R \\le k] /\n\\log_2(1 + R)`, and *not* x.")
    assert html.count("<math") == 2
    assert ":math:" not in html


def test_words_of_inline_code_stay_whole(page):
    html = page(f"the `--out a<b {'x' * 40} -`, ``\n\n    --in a block")
    words = ["--out", "a&lt;b", "-"]
    assert [f'<span class="word">{word}</span>' in html for word in words] == [True] * 3
    assert re.sub("<.*?>", "", html).startswith(f"the --out a&lt;b {'x' * 40} -, ")
    assert "word" not in html.split("<pre>")[1]


def test_defaults_are_those_of_the_signature(tmp_path):
    griffe = pytest.importorskip("griffe")
    parameters = load(PATH.with_name("parameters.py"))
    (tmp_path / "sample.py").write_text(
        'def f(a, b="y", c=1, d=2, e=3, *rest, **more):\n'
        '    """Do.\n\n    Parameters\n    ----------\n    a : int\n        One.\n'
        '    b : {"x", "y"}\n        Two.\n    c, d\n        Both.\n    e : int\n        Three.\n'
        '    *rest, **more\n        Others.\n    """\n',
    )
    module = griffe.load(
        "sample",
        search_paths=[tmp_path],
        docstring_parser="numpy",
        extensions=griffe.load_extensions(parameters.Parameters),
    )
    (section,) = (s for s in module["f"].docstring.parsed if s.kind.value == "parameters")
    told = [(p.name, str(p.annotation), p.value and str(p.value)) for p in section.value]
    assert told[0] == ("a", "int", None)
    assert told[1][::2] == ("b", "'y'")  # not the first of the two
    assert told[2] == ("c, d", "None", None)  # neither has the other's type or default
    assert told[3] == ("e", "int", "3")
    assert told[4] == ("*rest, **more", "None", None)


def test_parameters_that_several_functions_share_are_a_list(page):
    html = page(
        "Shared:\n\nbeta : float\n    Scale, above\n    0.\nmargin : float\n    The m.\n\nEnd."
    )
    assert html.count("<li>") == 2
    assert "<strong>beta</strong> (<code>float</code>): Scale, above 0." in html
