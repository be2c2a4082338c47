import json

from pyfast import cli


def test_train_prints_its_summary_as_json(tiny_settings, tmp_path, capsys):
    tiny_settings["optimisation"]["steps"] = 1
    (tmp_path / "settings.json").write_text(json.dumps({"recipe": "ampo", **tiny_settings}))
    out = tmp_path / "run"
    arguments = ["train", "ampo", "--config", str(tmp_path / "settings.json"), "--out", str(out)]
    assert cli.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "summary.json").read_text())
