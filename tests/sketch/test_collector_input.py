"""Bad batches and settings of the collector, by name and place."""

import numpy as np
import pytest
import torch

from pyfast import sketch

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]])
MASK = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])
REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
POSITIONS = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
SEGMENTS = torch.tensor([[0, 0, 1, 1], [2, 2, 2, -1]])
ONES = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ((IDS[0], MASK[0]), ValueError, r"input_ids: expected shape \(rows, T\), got \(4,\)"),
        ((IDS.float(), MASK), TypeError, "input_ids: expected integers, got torch.float32"),
        ((IDS, MASK[:1]), ValueError, r"response_mask: expected shape \(2, 4\), got \(1, 4\)"),
        ((IDS, 2 * MASK), ValueError, "response_mask: expected only 0 and 1"),
        ((IDS, REAL), ValueError, "a token before the first one of the response, at row 0, colu"),
        ((IDS, MASK, 1 - MASK), ValueError, "no response token where attention_mask is 0, at row"),
        (
            (IDS, MASK, torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])),
            ValueError,
            "response_mask: expected no padding just before a response token, at row 0, column 2",
        ),
        ((IDS, MASK, None, POSITIONS[:, :2]), ValueError, "position_ids: expected shape"),
        ((IDS, ONES, REAL, POSITIONS, SEGMENTS), ValueError, "attention_mask: expected none"),
        ((IDS, ONES, None, None, SEGMENTS), ValueError, "position_ids: expected beside segments"),
        ((IDS, ONES, None, POSITIONS, SEGMENTS - 1), ValueError, "segments: expected 0 to R - 1"),
        ((IDS, ONES, None, POSITIONS, SEGMENTS * 2), ValueError, "segments: expected 0 to R - 1"),
        (
            (IDS, ONES, None, POSITIONS, torch.tensor([[0, 1, 0, 1], [2, 2, 2, -1]])),
            ValueError,
            "segments: expected segment 0 in one piece",
        ),
        (
            (IDS, ONES, None, torch.arange(4).expand(2, 4), SEGMENTS),
            ValueError,
            "position_ids: expected positions that restart there, at row 0, column 2",
        ),
        (
            (IDS, ONES, None, POSITIONS * 2, SEGMENTS),
            ValueError,
            "position_ids: expected positions that rise by one there, at row 0, column 1",
        ),
        (
            (IDS, torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]), None, POSITIONS, SEGMENTS),
            ValueError,
            "no response token outside the segments, at row 1, column 3",
        ),
    ],
)
def test_bad_batches_are_named(tiny, batch, error, message):
    with pytest.raises(error, match=message):
        sketch.LoraGradients(tiny.lora(), 256).batch(*batch)


def test_bad_settings_are_named(tiny):
    model = tiny.lora()
    with pytest.raises(ValueError, match="dim: expected a power of two, got 1000"):
        sketch.LoraGradients(model, 1000)
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        sketch.LoraGradients(model, seed=-1)
    with pytest.raises(ValueError, match="expected trainable LoRA weights"):
        sketch.LoraGradients(tiny.model())
    with pytest.raises(ValueError, match="a prompt of at least one token, at 1"):
        sketch.LoraGradients(model).responses([([1], [2]), ([], [2])])
    for bad in (2.5, True):
        with pytest.raises(TypeError, match=r"expected integer token ids, got torch.\w+ at 1"):
            sketch.LoraGradients(model).responses([([1], [2]), ([bad], [bad])])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (([1], [2], [3]), r"at 1, got tuple \(\[1\], \[2\], \[3\]\)"),  # a pair of responses
        (([1], None), "at 1, got tuple"),
        (("ab", [2]), "at 1, got tuple"),
        (([[1]], [[2]]), "at 1, got tuple"),
        ({"prompt": [1], "response": [2]}, "at 1, got dict"),
        (5, "at 1, got int"),
        (([True], [2]), r"integer token ids, got torch.bool at 1"),
        (([1], [2.0]), r"integer token ids, got torch.float32 at 1"),
    ],
)
def test_what_is_no_prompt_and_response_is_named(tiny, tmp_path, bad, message):
    collector = sketch.LoraGradients(tiny.lora(), 256)
    responses = [([1], [2]), bad]
    with pytest.raises(TypeError, match=message):
        collector.responses(responses)
    with pytest.raises(TypeError, match=message):
        sketch.collect(collector, responses, tmp_path / "pool", progress=False)
    with pytest.raises(TypeError, match=r"a list of .* got list_iterator"):
        sketch.collect(collector, iter(responses), tmp_path / "pool", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, lambda x: np.array(x, np.uint8)])
def test_token_ids_of_any_integer_kind(tiny, kind):
    collector = sketch.LoraGradients(tiny.lora(), 256)
    responses = tiny.responses(3)
    found = collector.responses([(kind(p), kind(r)) for p, r in responses])
    assert torch.equal(found.sketches, collector.responses(responses).sketches)


def test_packed_rows_that_do_not_say_so_are_refused(tiny):
    collector = sketch.LoraGradients(tiny.lora(), 256)
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"position_ids: .*need segments.*row 0, column 3"):
        collector.batch(ids, mask, position_ids=[[0, 1, 2, 0, 1, 2]])
    # padding may say what it likes, before and after what is read
    padded = torch.tensor([[0, 0, 1, 1, 1, 1]])
    answer = torch.tensor([[0, 0, 0, 0, 1, 1]])
    collector.batch(ids, answer, padded, position_ids=[[1, 1, 0, 1, 2, 3]])
    collector.batch(ids, [[0, 1, 1, 0, 0, 0]], position_ids=[[0, 1, 2, 0, 0, 0]])
