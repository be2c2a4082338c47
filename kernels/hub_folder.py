"""A folder that Hugging Face's ``kernels`` loads: ``python -m pyfast.kernels.hub_folder OUT``.

It holds these kernels as one universal variant, which Triton compiles where it runs;
``kernels.get_local_kernel(OUT)`` imports it, and uploaded it is a repository for ``get_kernel``.
"""

import json
import shutil
import sys
from pathlib import Path

VERSION = 1
MODULES = ("runtime", "group_lse", "head", "sketch", "sketch_fused")
PUBLIC = {
    "group_lse": ("contrast", "listwise"),
    "head": ("fold", "slope"),
    "runtime": ("why_unusable",),
    "sketch": ("add_sketch",),
    "sketch_fused": ("add_outer_sketch",),
}
METADATA = {
    "id": f"pyfast_{VERSION}",
    "name": "pyfast",
    "version": VERSION,
    "license": "Apache-2.0",
    "python-depends": [],
    "backend": {"type": "cuda"},
}
CARD = """---
license: apache-2.0
tags:
- kernels
---

# pyfast kernels

Triton kernels of [pyfast](https://pypi.org/project/pyfast-align/): losses of groups of responses
with their slopes (`contrast`, `listwise`), the tiles of a language model's head (`fold`, `slope`),
and sketches of gradients (`add_sketch`, `add_outer_sketch`).

```python
from kernels import get_kernel

pyfast = get_kernel("OWNER/pyfast")
loss, slope = pyfast.contrast(scores)  # (B, n): the first of each group against the rest
```
"""


def write(out: Path) -> Path:
    """Write the folder; one that is there is refused. Return its path."""
    out = Path(out)
    variant = out / "build" / "torch-universal"
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: expected a new or an empty folder")
    variant.mkdir(parents=True)
    here = Path(__file__).parent
    for name in MODULES:
        shutil.copyfile(here / f"{name}.py", variant / f"{name}.py")
    names = sorted(name for found in PUBLIC.values() for name in found)
    lines = ['"""pyfast\'s Triton kernels."""', ""]
    lines += [f"from .{module} import {', '.join(found)}" for module, found in PUBLIC.items()]
    lines += ["", f"__all__ = {names}", ""]
    (variant / "__init__.py").write_text("\n".join(lines), encoding="utf-8")
    (variant / "metadata.json").write_text(json.dumps(METADATA, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(CARD, encoding="utf-8")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pyfast.kernels.hub_folder OUT")
    write(Path(sys.argv[1]))
