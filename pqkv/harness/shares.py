"""How much of what was attended to was codes, task by task: a figure without codes is the exact cache's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pqkv.errors import ConfigError
from pqkv.harness.config import HarnessConfig
from pqkv.schedule import first_coded


@dataclass(slots=True)
class Seen:
    """Columns that the query rows of a task's requests saw, those that were coded, its requests, and those of them in
    which any was.
    """

    columns: int = 0
    coded: float = 0
    requests: int = 0
    touched: int = 0

    @property
    def share(self) -> float:
        """Coded columns among all."""
        return self.coded / self.columns if self.columns else 0.0

    def add(self, columns: int, coded: float) -> None:
        """Count a request."""
        self.columns += columns
        self.coded += coded
        self.requests += 1
        self.touched += coded > 0

    def summary(self) -> dict[str, float]:
        """What a result says of it."""
        return {"coded_share": self.share, "requests": self.requests, "requests_with_codes": self.touched}


def check_coded(seen: Mapping[str, Seen], config: HarnessConfig, *, generated: bool) -> list[str]:
    """Names of the tasks in which nothing was coded. Raises `ConfigError`, with what to do, if that is all of them."""
    empty = [task for task, found in seen.items() if not found.coded]
    if config.exact or not empty or len(empty) < len(seen):
        return [] if config.exact else empty
    names = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
    if generated:
        cause = "no token was generated on codes: the prompt is attended to exactly, and"
        remedy = "take longer prompts (--num_fewshot), or lower residual and page_size"
    elif config.mode == "all-coded":
        cause, remedy = f"no request is longer than coded_sinks={config.coded_sinks}:", "lower it"
    else:
        cause, remedy = "", "take mode=all-coded,coded_sinks=4, or longer prompts (--num_fewshot)"
    starts = first_coded(residual=config.residual, sink_tokens=config.sink_tokens)
    begins = "" if config.mode == "all-coded" and not generated else f"coding starts at {starts} tokens"
    said = " ".join(part for part in (cause, begins) if part).rstrip(":")
    raise ConfigError(f"{names}: 0% coded columns, so every figure would be the exact cache's ({said}); {remedy}")
