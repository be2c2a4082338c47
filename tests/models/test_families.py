"""Families of models against one response at a time: a handful; the script tries all of them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HOW = {
    "bloom": "together",  # ALiBi from the mask
    "gemma2": "shared",  # capped logits, windows
    "llama4_text": "shared",  # chunked attention, a backbone under another name
    "mamba": "together",  # float32 states into a bfloat16 head
    "mixtral": "shared",
    "mpt": "together",  # ALiBi from places in the row
    "opt": "shared",  # positions with an offset
    "qwen3_next": "together",  # recurrences
    "rwkv": "together",
    "roberta": "refused",  # more than a head after its backbone
    "xlm": "refused",  # not causal
}


@pytest.fixture(scope="module")
def families():
    place = ROOT / "benchmarks" / "families.py"
    spec = importlib.util.spec_from_file_location("families", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", HOW)
def test_a_family(families, name):
    line = next(families.rows([name]))
    for cell in line[2:4]:
        assert cell.startswith(HOW[name]), line
