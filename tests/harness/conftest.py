"""Tasks and codebooks that the tests of the harness share."""

import pytest
from local_tasks import write_tasks

from pqkv.codec.codebook_file import save_codebooks
from pqkv.config import TrainConfig
from pqkv.lm.train import train


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """Three tasks of the harness in local files."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def four(reference, tmp_path_factory):
    """Quickly trained codebooks of 4 bits for the bundled model."""
    path = tmp_path_factory.mktemp("codebooks") / "four.safetensors"
    quick = TrainConfig(recipe="product", bits=4, calibration_tokens=4096, samples=4096, iterations=4)
    save_codebooks(path, *train(reference, quick))
    return path
