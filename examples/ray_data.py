"""Choose responses on a Ray cluster: a stage is a function of Arrow tables.

pip install ".[ray]"
python examples/ray_data.py GROUPS.jsonl OUT

Each line of GROUPS.jsonl holds a prompt, its responses, their scores and their embeddings; OUT is
a folder for Parquet files with the columns ``positive`` and ``negatives`` beside them.
"""

import os
import sys

import ray

from pyfast.tables import stages


def main(path, out):
    """Read, choose, write; print what came out."""
    # one core to a worker: a stage takes as many threads as it is told
    how = {"selector": "opt-select", "k": 3, "n_threads": 1}
    groups = ray.data.read_json(os.path.abspath(path), lines=True)
    chosen = groups.map_batches(stages.select, batch_format="pyarrow", fn_kwargs=how)
    chosen.write_parquet(os.path.abspath(out))
    print(f"{chosen.count()} groups with", *sorted(chosen.columns()))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    main(sys.argv[1], sys.argv[2])
