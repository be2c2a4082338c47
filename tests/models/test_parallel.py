"""Two processes: gradients are averaged, or the scorer says why they would not be."""

import os

import pytest
import torch
from made_up import SIZES, small
from torch import distributed, multiprocessing
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from pyfast.models.shared_prompt import GroupScorer, GroupScorerModule

GROUPS = [([4, 9, 12, 7], [[5, 6, 3], [8]]), ([6], [[4, 3], [7, 8]])]  # one for each process


def gradients(model, logps):
    logps.sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        model = small(LlamaForCausalLM, LlamaConfig, **SIZES).double()
        made_before = GroupScorer(model)
        made_before.logps(GROUPS[:1]).sum().backward()  # no DDP is there: theirs to average
        model.zero_grad()
        module = DistributedDataParallel(GroupScorerModule(model))
        found = gradients(model, module(GROUPS[rank : rank + 1]))
        for scorer in (made_before, module.module.scorer, GroupScorer(model)):
            with torch.no_grad():  # nothing to average
                scorer.logps(GROUPS)
            with pytest.raises(ValueError, match=r"^model: it is wrapped in DistributedDataPar"):
                scorer.logps(GROUPS)
        torch.save(found, os.path.join(folder, f"{rank}.pt"))
    finally:
        distributed.destroy_process_group()


def test_two_processes_average_their_gradients(tmp_path):
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    model = small(LlamaForCausalLM, LlamaConfig, **SIZES).double()
    expected = gradients(model, GroupScorer(model).logps(GROUPS)) / 2
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_wrapped_model_says_what_to_wrap():
    model = small(LlamaForCausalLM, LlamaConfig, **SIZES)
    with pytest.raises(ValueError, match=r"^model: DataParallel sees only what .*Module\(model\)"):
        GroupScorer(DataParallel(model))


def test_the_module_is_the_scorer_and_keeps_the_models_weights_once():
    model = small(LlamaForCausalLM, LlamaConfig, **SIZES)
    module = GroupScorerModule(model)
    assert torch.equal(module(GROUPS), GroupScorer(model).logps(GROUPS))
    assert [p.data_ptr() for p in module.parameters()] == [p.data_ptr() for p in model.parameters()]
