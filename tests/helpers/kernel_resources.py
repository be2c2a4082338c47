"""What a kernel compiled ahead of time takes of a GPU: registers, spills, shared memory."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def resources(built: Any, target: str) -> dict[str, int]:
    """Return registers a thread, spilled bytes and bytes of shared memory.

    `built` is what triton.compile() made for `target`, "sm_90" or "gfx942" say. A spill is whatever
    a thread keeps in memory of its own.
    """
    if target.startswith("gfx"):
        text = built.asm["amdgcn"]

        def said(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]

        spilled = 4 * (said("vgpr_spill_count") + said("sgpr_spill_count"))
        return {
            "registers": said("vgpr_count"),
            "spilled": spilled + said("private_segment_fixed_size"),
            "shared": built.metadata.shared,
        }
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", told)
    assert found is not None, told
    registers, stack, _, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local, "shared": built.metadata.shared}


def line(name: str, target: str, dtype: str, taken: dict[str, int]) -> str:
    """Lay one kernel out for people."""
    return (
        f"{name:40} {target:7} {dtype:5} {taken['registers']:4} registers "
        f"{taken['spilled']:5} bytes spilled {taken['shared']:6} bytes shared"
    )
