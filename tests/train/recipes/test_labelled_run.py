"""A run that people label, half in the terminal and half on the page: it goes on, and asks once."""

import json

import pytest
from serving import Client, serving

from pyfast import cli
from pyfast.label import terminal
from pyfast.label.desk import Desk, Run
from pyfast.train.recipes.active_dpo import labels


def test_half_in_the_terminal_and_half_on_the_page(make_active_settings, tmp_path, capsys):
    pytest.importorskip("starlette", reason="the page needs the extra: pip install '.[label]'")
    pytest.importorskip("uvicorn", reason="the page needs the extra: pip install '.[label]'")
    settings = make_active_settings(tmp_path)
    settings["oracle"] = {"oracle": "file"}
    settings["active"]["rounds"] = 2
    config, out = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps(settings))
    train = ["train", "active-dpo", "--config", str(config), "--out", str(out)]
    seen = []  # what was shown and said, by question

    def shorter(shown):
        first, second = map(len, shown.responses)
        choice = "s" if shown.id.startswith("0") else "1" if first <= second else "2"
        better = {"1": shown.responses[0], "2": shown.responses[1], "s": None}[choice]
        seen.append((shown.id, better))
        return choice

    def typed(desk, count):
        for _ in range(count):
            shown = desk.look().shown
            if shown is None:
                return
            yield shorter(shown)

    stops = 0
    while (status := cli.main(train)) == 3:
        stops += 1
        assert f"pyfast label {out}" in capsys.readouterr().err
        waiting = Desk(Run(out), "ann", via="terminal").look().waiting
        desk = Desk(Run(out), "ann", via="terminal")
        terminal.run(desk, typed(desk, waiting // 2), lambda text: None)
        if waiting > 1:
            assert cli.main(train) == 3  # not all: it waits on, and forgets nothing
        page = Desk(Run(out), "ann", via="page")
        with serving(page) as port:
            client = Client(port)
            while (shown := page.look().shown) is not None:
                body = {"id": shown.id, "choice": shorter(shown)}
                assert client("POST", "/api/answer", body)[0] == 200
    assert status == 0
    assert stops >= 2  # a round each, and more where questions were skipped
    keys = [key for key, _ in seen]
    assert len(set(keys)) == len(keys)  # no question twice
    told = labels.read(out / "labels.jsonl")
    assert {label.question.key for label in told} == set(keys)
    for label in told:
        chosen = {"a": label.question.a, "b": label.question.b, "skip": None}[label.answer.choice]
        assert chosen == dict(seen)[label.question.key]
        assert label.answer.notes["annotator"] == "ann"
    vias = {
        json.loads(line)["via"] for line in (out / "annotations.jsonl").read_text().splitlines()
    }
    assert vias == {"terminal", "page"}
    trained = [json.loads(line) for line in (out / "groups.jsonl").read_text().splitlines()]
    learnt = {group["responses"][0] for group in trained}
    assert learnt <= {better for _, better in seen if better is not None}
    assert len([better for _, better in seen if better is not None]) == 8  # rounds x labels
    assert cli.main(train) == 0  # a finished run asks nothing
    desk = Desk(Run(out), "ann", via="terminal")
    assert (desk.look().shown, desk.look().waiting) == (None, 0)
