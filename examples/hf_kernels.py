"""Our Triton kernels by Hugging Face's `kernels`: a folder that it loads, or that is uploaded.

pip install ".[kernels]" kernels
python examples/hf_kernels.py OUT

Writes the folder OUT and takes a loss and its slopes from what is loaded of it, on a GPU, or in
Triton's interpreter where TRITON_INTERPRET=1 is set.
"""

import sys

import torch
from pyfast.kernels import hub_folder

import kernels


def main(out):
    """Write, load, and check a loss against torch."""
    module = kernels.get_local_kernel(hub_folder.write(out))
    if (reason := module.why_unusable()) is not None:
        raise SystemExit(f"{reason} (TRITON_INTERPRET=1 runs it without a GPU)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = torch.randn(4, 8, device=device)  # of 4 groups, the chosen response first
    loss, slope = module.contrast(scores)
    torch.testing.assert_close(loss, scores.logsumexp(1) - scores[:, 0])
    print("loss", *(f"{value:.4f}" for value in loss.tolist()))
    print(f"slopes of a group add up to {slope.sum(1).abs().max().item():.0e}")


if __name__ == "__main__":
    main(sys.argv[1])
