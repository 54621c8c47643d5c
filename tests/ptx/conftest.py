"""Batches of `tests/kernels`, and a device for each test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))  # their batches and float64 references serve here too


@pytest.fixture
def device(monkeypatch):
    """An executor as the device of backend `cuda`, of compute capability 9.0 and seed 0."""
    from ptx.backend import Device

    return Device().install(monkeypatch)
