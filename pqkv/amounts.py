"""Amounts as people write them: `24GiB`, `90 min`."""

from __future__ import annotations

import re
from math import inf, nan

from pqkv.errors import ConfigError

_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600}


def bytes_of(text: str, name: str) -> int:
    """`24GiB`, `80 GB`, `512MiB`; raises `ConfigError`, naming the setting `name`, for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise ConfigError(f"{name} takes 24GiB, 80GB or 512MiB, not '{text}'")
    unit = found[2].upper()
    return int(float(found[1]) * (1024 if "I" in unit else 1000) ** ("KMGT".index(unit[0]) + 1))


def seconds_of(text: str, name: str) -> float:
    """`90 min`, `45s`, `2h`, or a number of seconds; raises `ConfigError`, naming the setting, for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|)", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ConfigError(f"{name} takes 45s, 90min or 2h, not '{text}'")
    return float(found[1]) * _SECONDS[found[2].lower()]


def share_of(text: str, name: str) -> float:
    """`1%` or `0.01`, 0 or more; raises `ConfigError`, naming the setting, for anything else."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = nan
    if not 0 <= share < inf:
        raise ConfigError(f"{name} takes 1% or 0.01, not '{text}'")
    return share


def bytes_text(count: float) -> str:
    """For people: 512 MB, 1.25 GB."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def seconds_text(seconds: float) -> str:
    """For people: 4.2 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
