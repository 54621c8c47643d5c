"""A cell of a sweep: a command with settings that leave nothing to vary, its digest and its name for people."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from pqkv.config import digest_of


@dataclass(frozen=True, slots=True)
class SweepCell:
    """`settings` are those that differ from the command's defaults, as JSON holds them; `varied` what the sweep
    varies; `run` counts repetitions from 1. `context` (tokens of a sequence), `tokens` (of all sequences that are run)
    and `alike` (what else decides how long it takes, the closest likeness first) are what estimates go by.
    """

    command: str
    settings: dict[str, Any]
    varied: dict[str, Any]
    run: int
    context: int
    tokens: int
    alike: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Names its outcome: the same for the same settings in whatever file they stand."""
        described = {"command": self.command, "settings": self.settings}
        return digest_of(described if self.run == 1 else described | {"run": self.run})

    @property
    def label(self) -> str:
        """For people."""
        parts = [f"{name} {_text(value)}" for name, value in self.varied.items()]
        return ", ".join([*(parts or [self.command]), *([f"run {self.run}"] if self.run > 1 else [])])

    def seeded(self, rule: str, base: int) -> SweepCell:
        """The cell with the seed that the rule of its sweep gives it."""
        seed = base + (self.run - 1 if rule == "run" else 0)
        if rule == "cell":
            drawn = hashlib.sha256(f"{base} {digest_of(self.settings)}".encode()).digest()
            seed = int.from_bytes(drawn[:4], "big") >> 1
        return replace(self, settings=self.settings | {"seed": seed} if seed else self.settings)


def _text(value: object) -> str:
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
