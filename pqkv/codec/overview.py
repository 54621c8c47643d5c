"""What there is to know of every codec, from the codecs themselves."""

from __future__ import annotations

import inspect
from typing import Any

from pqkv.codec.catalog import CODECS, CodecSpec
from pqkv.codec.interface import SideCodec
from pqkv.codec.sizes import nominal_bits
from pqkv.errors import ConfigError, PqkvError

_HEADS, _HEAD_DIM = 8, 128


def overview(name: str | None = None) -> list[dict[str, Any]]:
    """A row a codec: its name, what it is, bits under its default options, what it learns, modes, source, options.
    Raises `ConfigError` for a name that there is not.
    """
    if name is not None and name not in CODECS:
        raise ConfigError(f"no codec '{name}'; there are {', '.join(CODECS)}")
    return [_row(one) for one in ([name] if name else CODECS)]


def _row(name: str) -> dict[str, Any]:
    kind = CODECS[name]
    options = {
        key: f"{field.description or ''} (default {_default(field.default)})".strip()
        for key, field in kind.Options.model_fields.items()
    }
    return {
        "codec": name,
        "about": inspect.getdoc(inspect.getmodule(kind) or kind) or "",
        "bits": _bits(name),
        "learns": kind.calibrated or "nothing",
        "modes": "one forward" if not issubclass(kind, SideCodec) else "one forward, step by step",
        "source": kind.source,
        "options": options,
    }


def _default(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _bits(name: str) -> str:
    """Measured, where nothing has to be learnt for it; else said where it is measured."""
    spec = CodecSpec.parse(name)
    if spec.calibrated:
        return "as learnt"
    try:
        return f"{nominal_bits(spec.make({}), 1, _HEADS, _HEAD_DIM):.4g}"
    except PqkvError as error:
        return f"not for heads of {_HEAD_DIM}: {error}"
