"""Holding a collector's batches to one backward pass per response."""

import numpy as np
import torch

from pyfast import sketch
from pyfast.sketch import reference
from pyfast.sketch._batches import pad


def relative(got, want):
    """Largest relative error of a response's gradient."""
    lengths = np.linalg.norm(want, axis=1)
    return float((np.linalg.norm(got - want, axis=1) / np.where(lengths > 0, lengths, 1)).max())


def sketch_of(gradients, collector):
    """The definition: parts with descending numbers."""
    ends = np.cumsum([part.size for part in collector.parts])
    parts = np.split(gradients, ends[:-1], axis=1)
    numbers = list(range(len(parts)))[::-1]
    return reference.project_modules(
        [parts[m] for m in numbers], collector.dim, collector.seed, numbers
    )


def check(model, responses, batch=None, *, like=None, tolerance=1e-5):
    """Hold a batch (by default padded on the right) to the loop over `responses`."""
    collector = sketch.LoraGradients(model, dim=256, seed=5)
    batch = batch or dict(
        zip(("input_ids", "response_mask", "attention_mask"), pad(responses), strict=True)
    )
    found = collector.batch(**batch)
    gradients = collector.gradients(**batch).numpy()
    want = reference.lora_gradients(like or model, responses, collector.names)
    assert relative(gradients, want) <= tolerance
    assert found.sketches.numpy().tobytes() == sketch_of(gradients, collector).tobytes()
    exact = (gradients.astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose(found.squared_norms, exact, rtol=1e-12)
    np.testing.assert_allclose(found.part_norms.sum(1), exact, rtol=1e-12)
    assert found.lengths.tolist() == [len(response) for _, response in responses]
    return found, gradients


def left_padded(responses, by=0):
    longest = max(len(p) + len(r) for p, r in responses) + by
    ids, mask, real = (torch.zeros(len(responses), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, response) in enumerate(responses):
        ids[row, longest - len(prompt) - len(response) :] = torch.tensor([*prompt, *response])
        mask[row, longest - len(response) :] = 1
        real[row, longest - len(prompt) - len(response) :] = 1
    return {"input_ids": ids, "response_mask": mask, "attention_mask": real}


def packed(responses, rows, length):
    """Fill `rows` rows one response after the other; what is left over is padding."""
    ids, mask, positions = (torch.zeros(rows, length, dtype=torch.long) for _ in range(3))
    segments = torch.full((rows, length), -1)
    row = at = 0
    for number, (prompt, response) in enumerate(responses):
        size = len(prompt) + len(response)
        if at + size > length:
            row, at = row + 1, 0
        ids[row, at : at + size] = torch.tensor([*prompt, *response])
        mask[row, at + len(prompt) : at + size] = 1
        positions[row, at : at + size] = torch.arange(size)
        segments[row, at : at + size] = number
        at += size
    return {
        "input_ids": ids,
        "response_mask": mask,
        "position_ids": positions,
        "segments": segments,
    }
