"""Choices in files, beside reading them: Parquet against pyarrow's read, JSON Lines against lines.

``python benchmarks/bench_tables.py --groups 20000`` (a minute or two; 100,000 groups take 5 GB of
disk, and as much again for the copy and the output). Groups of 32 responses with 384 float32 each,
uncompressed Parquet in row groups of 1,000. Everything runs in processes of its own, start
included, and processor time is told (one thread; what runs beside it does not count). Choices are
those of `pyfast.select` on the same arrays before a time is printed. All columns are kept: those
that are not set are copied as they lie; pyarrow's own copy of the file, decoded and encoded again,
is told beside it. The JSON Lines are fewer (`--lines`), and their peer
is ``pyfast select``'s strict reader of small files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import resident

SIZE, WIDTH, K, ROWS = 32, 384, 7, 1000


def arrays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (groups, 32, 384) and scores (groups, 32)."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((count, SIZE, WIDTH), np.float32), draw.random((count, SIZE))


def write(folder: Path, groups: int, lines: int) -> None:
    """Write both files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, groups, ROWS):
        count = min(ROWS, groups - start)
        X, scores = arrays(count, start)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), WIDTH)
        ends = pa.array(np.arange(0, count * SIZE + 1, SIZE, dtype=np.int32))
        table = pa.table({
            "prompt": [f"prompt {start + i}" for i in range(count)],
            "scores": pa.array(list(scores)),
            "embeddings": pa.ListArray.from_arrays(ends, vectors),
        })  # fmt: skip
        if writer is None:
            writer = pq.ParquetWriter(
                folder / "groups.parquet", table.schema, compression="none", use_dictionary=False
            )
        writer.write_table(table)
    writer.close()
    X, scores = arrays(lines, 0)
    with open(folder / "groups.jsonl", "w") as stream:
        for i in range(lines):
            row = {"prompt": f"prompt {i}", "responses": ["r"] * SIZE}
            row |= {"scores": scores[i].tolist(), "embeddings": X[i].tolist()}
            stream.write(json.dumps(row) + "\n")


def part(name: str, folder: Path, groups: int, lines: int) -> dict:
    """Do one thing, and return its processor time and the most memory."""
    import pyarrow.parquet as pq

    import pyfast
    from pyfast import select
    from pyfast.cli import main as pyfast_main

    pyfast.set_num_threads(1)
    before = resident.reset()
    start = time.process_time()
    if name == "read":
        file = pq.ParquetFile(folder / "groups.parquet", memory_map=True)
        for batch in file.iter_batches(ROWS, use_threads=False):
            np.asarray(batch.column("embeddings").values.values).sum()
    elif name == "copy":
        file = pq.ParquetFile(folder / "groups.parquet", memory_map=True)
        with pq.ParquetWriter(
            folder / "copy.parquet", file.schema_arrow, compression="none", use_dictionary=False
        ) as writer:
            for batch in file.iter_batches(ROWS, use_threads=False):
                writer.write_batch(batch)
    elif name == "core":
        total = 0.0
        for first in range(0, groups, ROWS):
            X, scores = arrays(min(ROWS, groups - first), first)
            before = time.process_time()
            select.opt_select(X, scores, k=K)
            total += time.process_time() - before
        start = time.process_time() - total
    else:
        source = {"parquet": "groups.parquet"}.get(name, "groups.jsonl")
        if name in ("strict", "blocks"):
            import pyfast.cli.select

            pyfast.cli.select.LARGE = 0 if name == "blocks" else 1 << 60
        out = folder / f"{name}.{source.rpartition('.')[2]}"
        status = pyfast_main(["select", str(folder / source), "--k", str(K), "--out", str(out)])
        assert status == 0
    seconds = time.process_time() - start
    more = (resident.peak() - before) / 2**20
    return {"seconds": seconds, "peak": more, "mapped": resident.mapped() / 2**20}


def check(folder: Path, groups: int, lines: int) -> None:
    """Refuse other choices than those of the arrays."""
    import pyarrow.parquet as pq

    texts = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("strict", "blocks")]
    assert texts[0] == texts[1]
    found = np.array([json.loads(line)["negatives"] for line in texts[0]])
    assert (found == arrays_choice(lines)).all()
    table = pq.ParquetFile(folder / "parquet.parquet").read_row_group(0, columns=["negatives"])
    found = np.array(table["negatives"].to_pylist())
    assert (found == arrays_choice(min(ROWS, groups))[: len(found)]).all()


def arrays_choice(count: int) -> np.ndarray:
    """Return the choices of the first lines, from the arrays."""
    from pyfast import select

    X, scores = arrays(count, 0)
    return np.asarray(select.opt_select(X, scores, k=K).negatives)


def main() -> None:
    """Write, run everything, check, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=20_000)
    parser.add_argument("--lines", type=int, default=1_000)
    parser.add_argument("--part")
    parser.add_argument("--folder", type=Path, help="where to write the files (default: temporary)")
    given = parser.parse_args()
    if given.part:
        print(json.dumps(part(given.part, given.folder, given.groups, given.lines)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write(folder, given.groups, given.lines)
        found = {}
        for step in ("read", "copy", "core", "parquet", "strict", "blocks"):
            done = subprocess.run(
                [sys.executable, __file__, "--part", step, "--folder", name,
                 "--groups", str(given.groups), "--lines", str(given.lines)],
                capture_output=True, text=True, check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            found[step] = json.loads(done.stdout.splitlines()[-1])
        check(folder, given.groups, given.lines)
        size = (folder / "groups.parquet").stat().st_size / 1e9
    floor, copied = (found[n]["seconds"] + found["core"]["seconds"] for n in ("read", "copy"))
    ours = found["parquet"]
    print(f"{given.groups} groups, {size:.2f} GB of Parquet; {given.lines} lines; choices checked")
    print("| what | processor s | more memory, MB | of it mapped at the end |")
    print("|---|---|---|---|")
    for step, row in found.items():
        print(f"| {step} | {row['seconds']:.2f} | {row['peak']:.0f} | {row['mapped']:.0f} |")
    ratio = ours["seconds"] / floor
    print(f"Parquet: {ratio:.2f} x (reading + the core), all columns written; limit 1.5")
    print(f"Parquet: {ours['seconds'] / copied:.2f} x (pyarrow's reading and writing + the core)")
    ratio = found["strict"]["seconds"] / found["blocks"]["seconds"]
    print(f"JSON Lines: blocks are {ratio:.1f} x faster than the strict reader; target 5")


if __name__ == "__main__":
    main()
