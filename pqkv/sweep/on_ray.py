"""A sweep on a Ray cluster: cells are tasks with their resources, records are written here, by the driver alone.

A node or a worker of Ray that dies loses the cells it had: they are given out again. A driver that dies takes its tasks
along; the next one goes on from the records. Nodes need pqkv installed and nothing else: files that the sweep names by
a relative path are put into Ray's object store once, and each node unpacks them once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pqkv
from pqkv.errors import ConfigError
from pqkv.lock import Holder
from pqkv.record import RecordStore, atomic_write
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.ledger import Claim, Ledger, Running
from pqkv.sweep.placed import local_files, packed
from pqkv.sweep.process import failed
from pqkv.sweep.ray_task import Sent, record_of, run_cell
from pqkv.sweep.run import Terms, drive

_POLL = 0.5
_LOST = 5  # times that a cell may lose the worker it was given to: a cell that kills its worker is one of them


@dataclass(slots=True)
class _Task:
    claim: Claim
    given: float
    lost: int = 0


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connected to the Ray cluster at `address`: `local` starts one on this machine, `auto` finds the one there is.
    Raises `ConfigError` where Ray is not installed or nothing answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError('Ray is not installed: pip install "pqkv[ray]"') from error
    root = str(Path(pqkv.__file__).resolve().parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"env_vars": {"PYTHONPATH": paths}}
    if address == "local":  # Ray's workers step back behind everything else: cells are what this one is for
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, runtime_env=variables)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_on_ray(cells: Iterable[SweepCell], ledger: Ledger, terms: Terms) -> None:
    """As `run.run_sweep`, on the cluster this process is connected to; `terms.jobs` is not asked: as many cells run at
    once as the cluster has room for.
    """
    drive(cells, _Cluster(ledger, terms), ledger)


class _Cluster:
    def __init__(self, ledger: Ledger, terms: Terms) -> None:
        import ray

        self._ray, self._ledger, self._terms = ray, ledger, terms
        self.tasks: dict[Any, _Task] = {}
        self._placed: dict[tuple[Path, ...], Any] = {}
        self._remote = ray.remote(run_cell)

    @property
    def busy(self) -> bool:
        return bool(self.tasks)

    def close(self) -> None:
        """Nothing: tasks end with the connection."""

    def offer(self, cell: SweepCell, waiting: list[SweepCell]) -> None:
        while len(self.tasks) >= self._room(cell):
            self.wait(len(waiting))
        claim = self._ledger.claim(cell)
        if isinstance(claim, Holder):
            waiting.append(cell)
        elif claim is not None:
            self._submit(_Task(claim, time.monotonic()))

    def wait(self, elsewhere: int) -> None:
        ready, _ = self._ray.wait(list(self.tasks), timeout=_POLL) if self.tasks else ([], [])
        if not self.tasks:
            time.sleep(_POLL)
        for reference in ready:
            self._receive(reference, self.tasks.pop(reference))
        self._ledger.beat()
        now = time.monotonic()
        running = [Running(task.claim.cell.label, "on Ray", now - task.given, 0) for task in self.tasks.values()]
        self._ledger.show(running, elsewhere)

    def _room(self, cell: SweepCell) -> int:
        """Cells that are given out at once: one more than run, so that no worker waits for the driver."""
        have, want = self._ray.cluster_resources(), self._wanted(cell)
        gpus = [have.get("GPU", 0) // want["num_gpus"]] if want["num_gpus"] else []
        return int(min([have.get("CPU", 1) // want["num_cpus"], *gpus])) + 1

    def _wanted(self, cell: SweepCell) -> dict[str, Any]:
        gpus = 1 if str(cell.settings.get("device", "")).startswith("cuda") else 0
        limit = self._terms.limits.bytes
        memory = {"memory": int(limit)} if limit < float("inf") else {}
        return {"num_cpus": self._terms.threads, "num_gpus": gpus, **memory}

    def _submit(self, task: _Task) -> None:
        cell, terms = task.claim.cell, self._terms
        files = tuple(local_files(cell.settings))
        if files not in self._placed:
            self._placed[files] = self._ray.put(packed(list(files)))
        task.given = time.monotonic()
        options = self._remote.options(max_retries=0, **self._wanted(cell))
        reference = options.remote(cell, terms.threads, terms.own_process, terms.limits, self._placed[files])
        self.tasks[reference] = task

    def _receive(self, reference: object, task: _Task) -> None:
        claim = task.claim
        try:
            sent: Sent = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # a defect of ours, not of a node
            raise error.as_instanceof_cause() from error
        except self._ray.exceptions.RayError as error:
            task.lost += 1
            if task.lost < _LOST:
                self._ledger.listener.say(f"{claim.cell.label}: its worker was lost; given out again")
                self._submit(task)
                return
            reason = f"it lost its worker {task.lost} times, the last one to {type(error).__name__}"
            self._ledger.settle(claim, failed(reason, time.monotonic() - task.given), "died", 0.0)
            return
        if sent.log:
            atomic_write(claim.log, sent.log)
        store = RecordStore(claim.folder)
        for record in map(record_of, sent.records):
            if store.find(record.digest) is None:  # written before a driver that was killed wrote the outcome
                store.write(record)
        self._ledger.settle(claim, sent.over.found, sent.over.cause, sent.over.starting)
