"""Two processes: gradients are averaged, or the scorer says why they would not be."""

import os

import pytest
import torch
from made_up import SIZES, small
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from pyfast.losses import plackett_luce_top1
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


def shard(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        mesh = init_device_mesh("cpu", (2,))
        model = small(LlamaForCausalLM, LlamaConfig, **SIZES)
        module = GroupScorerModule(model)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        optimiser = torch.optim.AdamW(model.parameters(), 0.01)
        held = sum(p.to_local().numel() for p in model.parameters())
        loss_of(module(GROUPS[rank : rank + 1])).backward()  # gradients are averaged
        optimiser.step()
        whole = torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])
        torch.save((whole, held), os.path.join(folder, f"{rank}.pt"))
    finally:
        distributed.destroy_process_group()


def loss_of(logps):
    return plackett_luce_top1(logps, torch.zeros_like(logps), beta=0.1)


def test_a_step_of_a_model_that_two_processes_share_out(tmp_path):
    """FSDP2 (fully_shard) around the scorer, on a CPU mesh: each process holds half the weights."""
    multiprocessing.spawn(shard, args=(str(tmp_path),), nprocs=2)
    model = small(LlamaForCausalLM, LlamaConfig, **SIZES)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    scorer = GroupScorer(model)
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    (sum(loss_of(scorer.logps([group])) for group in GROUPS) / 2).backward()
    optimiser.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (expected - before).abs().max() > 1e-3
    for rank in range(2):
        found, held = torch.load(tmp_path / f"{rank}.pt")
        assert held <= 0.51 * len(expected)
        assert (found - expected).abs().max() < 1e-6
