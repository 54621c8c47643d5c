"""Which cells of a sweep are ours where a scheduler runs it several times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pqkv.errors import ConfigError
from pqkv.sweep.cells import SweepCell


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`th cell from the `index`th on, counted from 1."""

    index: int = 1
    count: int = 1
    said_by: str = ""

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}" + (f" ({self.said_by})" if self.said_by else "")

    def of(self, cells: Iterable[SweepCell]) -> Iterator[SweepCell]:
        """Those that are ours: neighbours in the file go to different shards, as they take about as long."""
        return islice(cells, self.index - 1, None, self.count)

    def size(self, total: int) -> int:
        """How many of `total` cells are ours."""
        return len(range(self.index - 1, total, self.count))

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/8`. Raises `ConfigError` for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"--shard takes i/n, the ith of n from 1/n to n/n, not '{text}'")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Shard:
        """As SLURM says: a task of an array, a process of a step, or a process of a step of a task of an array; all
        cells where it says nothing. Raises `ConfigError` for variables that contradict each other.
        """
        array, tasks = _place(environment, "SLURM_ARRAY_TASK"), _step(environment)
        said = [name for name, place in (("SLURM_ARRAY_TASK_ID", array), ("SLURM_PROCID", tasks)) if place[1] > 1]
        index, count = array[0] * tasks[1] + tasks[0], array[1] * tasks[1]
        if not 0 <= index < count:
            raise ConfigError(f"SLURM's variables name task {index + 1} of {count}; give --shard i/n instead")
        return cls(index + 1, count, " and ".join(said))


def _place(environment: Mapping[str, str], name: str) -> tuple[int, int]:
    if f"{name}_ID" not in environment:
        return 0, 1
    own, count = _number(environment, f"{name}_ID"), _number(environment, f"{name}_COUNT")
    first, step = _number(environment, f"{name}_MIN", 0), _number(environment, f"{name}_STEP", 1)
    return (own - first) // max(1, step), count


def _step(environment: Mapping[str, str]) -> tuple[int, int]:
    if "SLURM_PROCID" not in environment:
        return 0, 1
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return _number(environment, "SLURM_PROCID"), _number(environment, count, 1)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name} is '{text}', not a number; give --shard i/n instead")
    return int(text)
