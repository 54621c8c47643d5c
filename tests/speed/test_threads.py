"""Benchmarks run on the threads asked for and leave the process's own numbers as they found them."""

import faiss
import numpy as np
import pytest
import torch

from pqkv.codec.kmeans import kmeans
from pqkv.config import BenchConfig
from pqkv.env import usable_cores
from pqkv.speed import bench as module
from pqkv.speed.bench import bench
from pqkv.speed.encoding import encoding_contestants, faiss_threads

TINY = {"lengths": [64], "batch": [1, 2], "bits": [0.0], "heads": 2, "kv_heads": 1, "head_dim": 16, "repeats": 1,
        "page_size": 16, "residual": 32, "backend": "cpu"}  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
    """Threads that torch has while a cell is measured; the machine has two cores."""
    found = []

    def measure(*arguments):
        found.append(torch.get_num_threads())
        return {"metrics": {}}

    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    return found


def test_torch_has_the_threads_asked_for_in_a_cell_and_its_own_between_cells(seen):
    before = torch.get_num_threads()
    records = bench(BenchConfig(**TINY, threads=before + 1))
    for _ in range(2):
        next(records)
        assert torch.get_num_threads() == before
    assert seen == [before + 1] * 2


@pytest.mark.parametrize("end", ["closed", "run to its end", "failed"])
def test_however_a_bench_ends_torch_has_its_own_threads_again(seen, monkeypatch, end):
    before = torch.get_num_threads()
    records = bench(BenchConfig(**TINY, threads=before + 1))
    if end == "failed":
        monkeypatch.setattr(module, "run_cell", lambda *arguments, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(records)
    elif end == "closed":
        next(records)
        records.close()
    else:
        list(records)
    assert torch.get_num_threads() == before


def test_faiss_keeps_its_number_of_threads():
    before = faiss.omp_get_max_threads()
    points = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    kmeans(points[None], 2, 2, 0)
    with faiss_threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
    for contestant in encoding_contestants(BenchConfig(**TINY), (8, 4)):
        contestant.calls[0]()
    assert faiss.omp_get_max_threads() == before


def test_there_is_at_least_one_core():
    assert usable_cores() >= 1
