"""What a sweep is: one TOML file. A command, what stays fixed, what varies, the seed, limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pqkv.amounts import bytes_of, seconds_of
from pqkv.config import Settings, read_config_file
from pqkv.errors import ConfigError
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.commands import COMMANDS, CommandName

Linked = dict[str, tuple[Any, ...]]


class SeedRule(Settings):
    """Which seed a cell has: `same`, the base; `run`, the base and the number of the run, from 0; `cell`, a number
    drawn from the cell's other settings and the base, which no other cell's place in the file changes.
    """

    rule: Literal["same", "run", "cell"] = "same"
    base: int = Field(0, ge=0, lt=2**31)


class Limits(Settings):
    """Of each cell: time once its process is ready, and the resident memory of that process and its children."""

    time: str | None = Field(None, description="45s, 90min, 2h")
    memory: str | None = Field(None, description="8GiB")

    @property
    def seconds(self) -> float:
        """Infinite where none is given."""
        return math.inf if self.time is None else seconds_of(self.time, "limits.time")

    @property
    def bytes(self) -> float:
        """Infinite where none is given."""
        return math.inf if self.memory is None else bytes_of(self.memory, "limits.memory")


class SweepConfig(Settings):
    """`pqkv sweep`."""

    command: CommandName
    fixed: dict[str, Any] = Field({}, description="settings of the command that every cell has")
    product: Linked = Field({}, description="settings and what they take: all combinations")
    zip: tuple[Linked, ...] = Field((), description="settings that vary together: first with first, second with second")
    skip: tuple[dict[str, Any], ...] = Field((), description="combinations that are left out")
    seed: SeedRule = SeedRule()
    limits: Limits = Limits()
    threads: int | None = Field(None, ge=1, description="of each process; absent: the cores by the processes")
    own_process: bool | None = Field(
        None, description="a process for each cell; absent: where times are measured, otherwise one for many cells"
    )

    @field_validator("zip", mode="before")
    @classmethod
    def _one_zip(cls, given: object) -> object:
        return (given,) if isinstance(given, dict) else given

    @field_validator("product", "zip", mode="before")
    @classmethod
    def _lists(cls, given: object) -> object:
        for table in given if isinstance(given, list | tuple) else (given,):
            for name, values in table.items() if isinstance(table, dict) else ():
                if not isinstance(values, list | tuple):
                    raise ValueError(f"{name} takes a list of what it varies over; what does not vary belongs to fixed")
                if not values:
                    raise ValueError(f"{name} varies over nothing; give it at least one value")
        return given

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        for number, linked in enumerate(self.zip, 1):
            lengths = {name: len(values) for name, values in linked.items()}
            if len(set(lengths.values())) > 1:
                said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
                raise ValueError(f"the settings of zip {number} are linked one by one, but {said} values")
        places = [*self.fixed, *self.product, *(name for linked in self.zip for name in linked)]
        twice = sorted({name for name in places if places.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is given twice; a setting is fixed, in product, or in one zip")
        if "seed" in places and self.seed.rule != "same":
            raise ValueError(f"seed is given, and the seed rule '{self.seed.rule}' would set another; leave one out")
        for name in {name for combination in self.skip for name in combination} - set(places):
            raise ValueError(f"skip names {name}, which the sweep neither fixes nor varies")
        try:
            _ = self.limits.seconds, self.limits.bytes
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @classmethod
    def read(cls, path: Path) -> SweepConfig:
        """The sweep of a file. Raises `ConfigError` in one line for whatever is wrong with it, its cells included as
        far as their settings say.
        """
        config = cls.parse(read_config_file(path), source=path.name)
        if next(config.combinations(), None) is None:
            raise ConfigError(f"{path.name}: every combination is skipped; nothing is left to run")
        next(config.cells(source=path.name))
        return config

    @property
    def in_own_process(self) -> bool:
        """Whether every cell gets a process for itself."""
        return COMMANDS[self.command].timed if self.own_process is None else self.own_process

    @property
    def varied(self) -> list[str]:
        """The settings that differ between cells, in the order of the file: those of zips change slowest."""
        return [*(name for linked in self.zip for name in linked), *self.product]

    def combinations(self) -> Iterator[dict[str, Any]]:
        """What varies, cell by cell, made as it is asked for."""
        groups: list[list[dict[str, Any]]] = [
            _distinct([dict(zip(linked, values, strict=True)) for values in zip(*linked.values(), strict=True)])
            for linked in self.zip
        ]
        groups += [_distinct([{name: value} for value in values]) for name, values in self.product.items()]
        for parts in product(*groups):
            found = {name: value for part in parts for name, value in part.items()}
            whole = self.fixed | found
            if not any(all(whole[name] == value for name, value in skipped.items()) for skipped in self.skip):
                yield found

    def count(self, runs: int = 1) -> int:
        """Of cells."""
        return runs * sum(1 for _ in self.combinations())

    def cells(self, runs: int = 1, *, source: str = "sweep") -> Iterator[SweepCell]:
        """Every cell, `runs` times each, run by run, made as it is asked for. Raises `ConfigError`, naming `source` and
        the combination, for settings that the command does not take.
        """
        command = COMMANDS[self.command]
        for run in range(1, runs + 1):
            for found in self.combinations():
                cell = command.cell(self.fixed | found, found, run, source)
                yield cell.seeded(self.seed.rule, self.seed.base) if "seed" not in self.fixed | found else cell


def _distinct(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [value for place, value in enumerate(values) if value not in values[:place]]
