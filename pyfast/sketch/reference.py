"""The slow, readable truth: XOR stripes in plain numpy, and one backward pass per response.

`project` is the definition of the projection; docs/xor-stripes.md says the same in words. It
needs a few hundred bytes of scratch for each number of a sketch and knows none of the fast code.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

CHUNK = 64  # stripes whose sum starts from zero


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return Philox4x32-10 blocks (Salmon et al., 2011) of counters that broadcast: (4, ...).

    Examples
    --------
    >>> [hex(int(word)) for word in philox((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in counter))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def stripe(g: int, module: int, dim: int, seed: int) -> tuple[int, Floats]:
    """Return what stripe g does: its XOR, and the signs +-1 of the `dim` numbers of the sketch."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    x = int(philox((g, 0, module, 0), key)[0]) & (dim - 1)
    blocks = philox((g, np.arange(dim // 128), module, 1), key)  # (4, dim / 128)
    words = blocks.T.reshape(-1)  # word w >> 5 holds the bits of w
    w = np.arange(dim)
    bits = (words[w >> 5] >> (w & 31).astype(np.uint32)) & np.uint32(1)
    return x, np.where(bits == 1, np.float32(-1), np.float32(1))


def project(v: Floats, dim: int = 65536, seed: int = 0, module: int = 0) -> Floats:
    """Return the XOR-stripes sketch (version 1) of rows v: (B, p) -> (B, dim), float32."""
    return project_modules([v], dim, seed, [module])


def project_modules(parts: Iterable[Floats], dim: int, seed: int, modules: Iterable[int]) -> Floats:
    """Return the sketch of gradients in parts (B, p_m), added in the order in which they come."""
    w = np.arange(dim)
    total: Floats | None = None
    for v, module in zip(parts, modules, strict=True):
        if total is None:
            total = np.zeros((len(v), dim), np.float32)
        for start in range(0, v.shape[1], CHUNK * dim):
            chunk = np.zeros_like(total)
            for at in range(start, min(start + CHUNK * dim, v.shape[1]), dim):
                x, signs = stripe(at // dim, module, dim, seed)
                numbers = np.zeros_like(total)
                piece = v[:, at : at + dim]
                numbers[:, : piece.shape[1]] = piece
                chunk += signs * numbers[:, w ^ x]
            total += chunk
    assert total is not None
    return total


def products(wide: Floats, narrow: Floats) -> NDArray[np.float64]:
    """Return gradients from their factors, each ``sum_t wide[b, t] narrow[b, t]^T``, in float64.

    (R, T, d), (R, T, r) -> (R, d, r).
    """
    found: NDArray[np.float64] = np.matmul(
        wide.astype(np.float64).transpose(0, 2, 1), narrow.astype(np.float64)
    )
    return found


def lora_gradients(
    model: Any, responses: Iterable[tuple[list[int], list[int]]], names: list[str]
) -> Floats:
    """Return ``grad log pi(y|x)``, float32 (R, p), by one backward pass per response.

    `names` are of LoRA matrices, as `LoraGradients.names`; A comes transposed, [d_in, r].
    """
    import torch

    named = dict(model.named_parameters(remove_duplicate=False))
    weights = [named[name] if name in named else named[f"{name}.weight"] for name in names]
    rows = []
    for prompt, response in responses:
        ids = torch.tensor([[*prompt, *response]], device=weights[0].device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        logps = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        total = logps.gather(1, ids[0, len(prompt) :, None]).sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
        flat = [
            (gradient.flatten(1).T if "_A." in name else gradient).float().reshape(-1)
            for name, gradient in zip(names, gradients, strict=True)
        ]
        rows.append(torch.cat(flat).cpu().numpy())
    return np.stack(rows)
