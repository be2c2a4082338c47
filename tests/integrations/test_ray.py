"""The stages in Ray Data, as they are (`make test-ray`; Ray is not among the test requirements)."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast.tables import stages

ray = pytest.importorskip("ray")

ROWS = 60


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    draw = np.random.default_rng(0)
    rows = [
        {
            "id": i,
            "prompt": f"prompt {i}",
            "scores": draw.random(8).tolist(),
            "embeddings": draw.normal(size=(8, 4)).tolist(),
        }
        for i in range(ROWS)
    ]
    path = tmp_path_factory.mktemp("ray") / "groups.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    return path


def rows_of(data):
    return sorted(
        ((row["id"], row["positive"], list(row["negatives"])) for row in data.take_all()),
    )


def expected(source, name):
    found = stages.select(pq.read_table(source), selector=name, k=3, n_threads=1).to_pylist()
    return [(row["id"], row["positive"], row["negatives"]) for row in found]


@pytest.mark.parametrize("name", ["opt-select", "random"])
def test_two_workers_choose_what_one_process_chooses(cluster, source, name):
    data = ray.data.read_parquet(str(source)).repartition(6)
    chosen = data.map_batches(
        stages.select,
        batch_format="pyarrow",
        batch_size=7,
        fn_kwargs={"selector": name, "k": 3, "n_threads": 1},
    )
    assert rows_of(chosen) == expected(source, name)


def test_a_worker_that_is_killed_once_loses_and_doubles_nothing(cluster, source, tmp_path):
    mark = tmp_path / "killed"

    def dying(table, mark):
        if 25 in table["id"].to_pylist() and not Path(mark).exists():
            Path(mark).touch()
            os._exit(1)
        return stages.select(table, k=3, n_threads=1)

    data = ray.data.read_parquet(str(source)).repartition(6)
    chosen = data.map_batches(
        dying, batch_format="pyarrow", batch_size=10, fn_kwargs={"mark": str(mark)}
    )
    assert rows_of(chosen) == expected(source, "opt-select")
    assert mark.exists()
