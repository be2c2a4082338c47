"""Each example in a new environment, installed as it says itself: ``examples.py WHEEL [NAME ...]``.

An example's own lines ``pip install ...`` and ``python examples/...`` are what is run, "." being
the wheel; the model and the files are made up and small. Examples of one such install share an
environment. What they print is kept in build/examples/logs.
"""

import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "examples"
LOSS = r"\bloss(?:'?: '?| )(-?[\d.]+(?:e-?\d+)?|nan)"
WANTED = {
    "plain_loop": LOSS,
    "trl_groups": LOSS,
    "trl_fast_head": LOSS,
    "trl_grpo": LOSS,
    "hf_trainer": LOSS,
    "axolotl": LOSS,
    "scikit_learn": r"medoids \d+ \d+ \d+\nagreement 0\.[67]",
    "datasets_map": r"16 groups, 48 pairs with.* chosen .*rejected",
    "ray_data": r"16 groups with.* negatives .*positive",
    "verl_advantages": r"a \+[\d.]+ \+[\d.]+\na -",
    "hf_kernels": r"slopes of a group add up to \de-\d\d",
}
"""What an example prints, at least."""
ON_REQUEST = ("axolotl",)
"""Runs where it is named: its pins bring several GB of packages for GPUs."""
OWN_PINS = ("verl", "axolotl")
"""Packages that ask for other versions than constraints.txt."""
VARIABLES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def main(wheel: str, *names: str) -> None:
    """Run the examples that are named, or all."""
    unknown = {path.stem for path in (ROOT / "examples").iterdir() if path.is_file()} ^ set(WANTED)
    if unknown:
        raise SystemExit(f"no such example, or none that is known here: {sorted(unknown)}")
    shutil.rmtree(BUILD / "runs", ignore_errors=True)
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    files = made_up(BUILD / "files")
    wanted = names or [name for name in WANTED if name not in ON_REQUEST]
    failed = [name for name in wanted if not passes(name, wheel, files)]
    print(f"{len(wanted) - len(failed)} passed, {len(failed)} failed")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {BUILD / 'logs'}")


def passes(name: str, wheel: str, files: dict[str, str]) -> bool:
    """Install and run an example, and say how that went."""
    install, command = said(name)
    log = BUILD / "logs" / f"{name}.log"
    with log.open("w") as stream:
        programs = environment(install, wheel, stream)
        status = 1 if programs is None else run(name, programs, command, files, stream)
    found = re.findall(WANTED[name], log.read_text())
    if WANTED[name] == LOSS:
        found = found if found and all(math.isfinite(float(x)) for x in found) else []
        shown = f"loss {found[0]} to {found[-1]}" if found else "no loss, or not a finite one"
    else:
        shown = found[0].replace("\n", "; ") if found else f"expected {WANTED[name]}"
    passed = status == 0 and bool(found)
    print(
        f"{name:<16} {'passed' if passed else 'FAILED'}  pip install {install}: {shown}", flush=True
    )
    return passed


def said(name: str) -> tuple[str, str]:
    """Return an example's own lines: how to install it, and how to run it."""
    (path,) = (ROOT / "examples").glob(f"{name}.*")
    text = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (install,) = re.findall(r"^pip install (.+)$", text, re.MULTILINE)
    (command,) = re.findall(r"^((?:python|axolotl train) examples/.+)$", text, re.MULTILINE)
    return install, command


def environment(install: str, wheel: str, log) -> Path | None:
    """Make a new environment; return where its programs are, None if something did not install."""
    folder = BUILD / "environments" / re.sub(r"\W+", "-", install).strip("-")
    if (folder / "done").exists():
        return folder / "bin"
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    words = [re.sub(r"^\.", wheel, word) for word in shlex.split(install)]
    pins = [] if set(words) & set(OWN_PINS) else ["-c", ROOT / "constraints.txt"]
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--no-compile", "-q"]
    done = subprocess.run([*pip, *pins, *words], stdout=log, stderr=log)
    if done.returncode:
        return None
    (folder / "done").touch()
    return folder / "bin"


def run(name: str, programs: Path, command: str, files: dict[str, str], log) -> int:
    """Run an example in a folder of its own; return its exit status."""
    where = BUILD / "runs" / name
    shutil.copytree(BUILD / "files", where)
    words = [files.get(word, word) for word in shlex.split(command)]
    words[0] = str(programs / words[0])
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    interpreted = {"TRITON_INTERPRET": "1"} if name == "hf_kernels" else {}
    variables = {"PATH": path, "HOME": str(where), **VARIABLES, **interpreted}
    return subprocess.run(words, cwd=where, env=variables, stdout=log, stderr=log).returncode


def made_up(folder: Path) -> dict[str, str]:
    """Write a small model and the files that examples read; return what their words stand for."""
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest

    shutil.rmtree(folder, ignore_errors=True)
    conftest.make_model().save_pretrained(folder / "model")
    conftest.make_tokenizer(conftest.CHAT_TEMPLATE).save_pretrained(folder / "model")
    draw = random.Random(0)

    def text(most: int) -> str:
        return " ".join(draw.choices(conftest.WORDS[:20], k=draw.randint(2, most)))

    groups = [
        {"prompt": text(6) + " ", "responses": [text(8) for _ in range(8)],
         "scores": [draw.random() for _ in range(8)],
         "embeddings": [[draw.gauss(0, 1) for _ in range(4)] for _ in range(8)]}
        for _ in range(16)
    ]  # fmt: skip
    lists = [
        {"prompt": row["prompt"], "chosen": row["responses"][0], "rejected": row["responses"][1:4]}
        for row in groups
    ]
    pairs = [{**row, "rejected": row["rejected"][0]} for row in lists]
    for name, rows in {"scored": groups, "groups": lists, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "MODEL": "model", "GROUPS.jsonl": "scored.jsonl", "PROMPTS.jsonl": "scored.jsonl",
        "PAIRS.jsonl": "pairs.jsonl", "OUT": "out", "OUT.jsonl": "out.jsonl", "[STEPS]": "4",
    }  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
