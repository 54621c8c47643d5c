"""What is measured so far of a method: one file a window, so that a lab goes on wherever it was stopped."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from pqkv.codec.sizes import CodedSizes
from pqkv.lm.plugin import Attended
from pqkv.quality.measures import PositionMeasures


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a method: its measures, what its batch took in bytes and columns (they stand with the first window
    of the batch; the others have none), and its share of the time.
    """

    measures: PositionMeasures
    sizes: CodedSizes
    attended: Attended
    seconds: float


class Partials:
    """Windows of the cells of one folder. Without a folder they are kept in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "partial"
        self._kept: dict[tuple[str, int], Window] = {}

    def has(self, digest: str, window: int) -> bool:
        """Whether a window of a cell was measured; a damaged file holds none, and is measured again."""
        return self.read(digest, window) is not None

    def read(self, digest: str, window: int) -> Window | None:
        """A window; None where it was not measured, or its file is damaged (which is removed)."""
        if self._folder is None:
            return self._kept.get((digest, window))
        path = self._path(digest, window)
        try:
            with np.load(path) as held:
                return _window({name: held[name] for name in held.files})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            path.unlink(missing_ok=True)
            return None

    def write(self, digest: str, window: int, measured: Window) -> None:
        """Keep a window, in one step."""
        if self._folder is None:
            self._kept[digest, window] = measured
            return
        path = self._path(digest, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, **_arrays(measured))  # type: ignore[arg-type] # numpy's stubs take no dict of arrays
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def forget(self, digest: str) -> None:
        """A cell that has its record needs no parts."""
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != digest}
        if self._folder is not None:
            shutil.rmtree(self._folder / digest, ignore_errors=True)
            with suppress(OSError):  # the last one takes the folder along
                self._folder.rmdir()

    def _path(self, digest: str, window: int) -> Path:
        assert self._folder is not None
        return self._folder / digest / f"{window:05d}.npz"


def _arrays(measured: Window) -> dict[str, np.ndarray]:
    measures = measured.measures
    named = {"nll": measures.nll, "nll_exact": measures.nll_exact, "kld": measures.kld}
    named |= {f"agreement.{k}": part for k, part in measures.agreement.items()}
    named |= {f"inside.{k}": part for k, part in measures.top1_in_topk.items()}
    arrays = {name: tensor.numpy() for name, tensor in named.items()}
    counted = {"sizes": np.array(astuple(measured.sizes)), "attended": np.array(astuple(measured.attended))}
    return {**arrays, **counted, "seconds": np.array(measured.seconds)}


def _window(arrays: dict[str, np.ndarray]) -> Window:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def by_k(prefix: str) -> dict[int, torch.Tensor]:
        return {int(name.partition(".")[2]): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}

    measures = PositionMeasures(tensors["nll"], tensors["nll_exact"], tensors["kld"], by_k("agreement"), by_k("inside"))
    sizes, attended = CodedSizes(*map(int, arrays["sizes"])), Attended(*map(int, arrays["attended"]))
    return Window(measures, sizes, attended, float(arrays["seconds"]))
