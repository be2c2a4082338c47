"""Choose responses in a data set of Hugging Face's `datasets`, and write pairs for TRL.

pip install ".[datasets]"
python examples/datasets_map.py GROUPS.jsonl OUT.jsonl

Each line of GROUPS.jsonl holds a prompt, its responses, their scores and their embeddings.
"""

import functools
import sys

from datasets import Dataset

from pyfast.tables import stages


def main(path, out):
    """Select, export, write; print what came out."""
    select = functools.partial(stages.select, selector="opt-select", k=3)
    export = functools.partial(stages.export, format="pairs")
    rows = Dataset.from_json(path).with_format("arrow")
    chosen = rows.map(select, batched=True)
    pairs = chosen.map(export, batched=True, remove_columns=chosen.column_names)
    pairs.to_json(out)
    print(f"{len(chosen)} groups, {len(pairs)} pairs with", *pairs.column_names)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
