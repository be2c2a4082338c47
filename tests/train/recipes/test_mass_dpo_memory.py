"""A step of mass-dpo takes the memory of what it learns from, however many candidates it reads."""

from pathlib import Path

import peak_memory
import pytest

STEP = """
    import json, pathlib, peak_memory, sys, torch
    sys.path.insert(0, {tests!r})
    from conftest import WORDS, make_model, make_tokenizer
    from pyfast.train import config as configs
    from pyfast.train.context import Context
    from pyfast.train.policy.policy import Policy
    from pyfast.train.recipes.mass_dpo import MassDpo, MassDpoSettings

    torch.set_num_threads(1)
    candidates, learn_all = {candidates}, {learn_all}
    words = WORDS[:30]
    texts = [" ".join(words[(i * j + j) % 30] for j in range(1, 17)) for i in range(candidates)]
    row = {{"prompt": " ".join(words * 4), "responses": texts, "positive": 0}}
    pathlib.Path("groups.jsonl").write_text(json.dumps(row) + chr(10))
    model = make_model(hidden_size=256, intermediate_size=768, num_hidden_layers=8,
                       max_position_embeddings=512)
    policy = Policy(model, make_tokenizer(), rank=4, alpha=8.0)
    settings = configs.from_dict(MassDpoSettings, {{"data": {{"groups": "groups.jsonl"}}}})
    recipe = MassDpo(settings, MassDpo.read(settings), Context(policy, 0, pathlib.Path("run")))
    group = recipe.candidates["train"][0]

    policy.logps(group.prompt, group.responses[:1]).sum().backward()  # what is made once
    recipe.ref_logps = {{"train": {{0: torch.full((candidates,), -50.0)}}}}  # nothing is read yet
    before = peak_memory.reset()
    (chosen,) = recipe.groups(0)
    if learn_all:
        chosen.responses, chosen.ref_logps = group.responses, recipe.ref_logps["train"][0]
    recipe.loss(recipe.ctx.score(chosen), 0, {{}}).backward()
    print(len(chosen.responses), peak_memory.peak() - before)
"""


@pytest.fixture
def grown(run_python, monkeypatch):
    """Return a function that measures by how many bytes a step raises the peak."""
    import textwrap

    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")  # what is freed is given back
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def measure(candidates, learn_all=False):
        tests = str(Path(__file__).parents[2])
        code = STEP.format(tests=tests, candidates=candidates, learn_all=learn_all)
        learnt, rise = run_python(textwrap.dedent(code)).splitlines()[-1].split()
        assert int(learnt) == (candidates if learn_all else 4)
        return int(rise)

    return measure


@pytest.mark.slow
@peak_memory.MEASURED
def test_twenty_candidates_take_the_memory_of_four(grown):
    four, twenty = grown(4), grown(20)
    assert four > 20_000_000  # the step shows above what was there
    assert twenty < 1.15 * four
    assert grown(20, learn_all=True) > 1.5 * four  # what it would be without a selection
