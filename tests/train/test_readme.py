"""The examples of scoring on the page about loops, as written, in an interpreter of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "use" / "plain-loop.md"
NAMES = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
base_model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r}).train()
if {peft}:
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
prompt_tokens, chosen_tokens, rejected_tokens = [4, 9, 12], [5, 6, 3], [8, 3]
"""
CHECKS = """
logps.sum().backward()
assert logps.shape == ref_logps[0].shape == (2,)
parameters = [p for p in model.parameters() if p.requires_grad]
assert all(p.grad is not None for p in parameters)
for response, logp in zip(groups[0][1], logps):
    tokens = torch.tensor([prompt_tokens + response])
    expected = model(input_ids=tokens).logits[0].log_softmax(-1)[2:-1]
    expected = expected.gather(1, tokens[0, 3:, None]).sum()
    torch.testing.assert_close(logp, expected, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.parametrize("peft", [False, True], ids=["plain model", "peft model"])
def test_scoring_in_a_loop_of_your_own(tiny_model, tmp_path, monkeypatch, peft):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    blocks = [block for block in blocks if re.search(r"from pyfast\.(models|train)", block)]
    assert len(blocks) == 2
    names = NAMES.format(folder=str(tiny_model), peft=peft)
    script = "\n".join([names, *blocks, CHECKS])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "None"
