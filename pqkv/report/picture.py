"""A picture that an experiment drew itself, taken into the page whole."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from pqkv.errors import RecordError
from pqkv.report.panels import data_uri

_PNG = b"\x89PNG\r\n\x1a\n"
_UNITS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its size in pixels of the page; 0 where its file does not say."""

    title: str
    file: str
    uri: str
    alt: str
    width: int
    height: int


def read_picture(path: Path, experiment: str) -> Picture:
    """Read a PNG or an SVG. Raises `RecordError` in one line when it cannot be read or is neither."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read the figure {path}: {error.strerror}") from error
    svg = path.suffix.lower() == ".svg"
    try:
        width, height = _svg_size(data) if svg else _png_size(data)
    except (ValueError, struct.error) as error:
        raise RecordError(f"{path} is not {'an SVG' if svg else 'a PNG'}; draw it again or remove it") from error
    title = re.sub("[-_]+", " ", path.stem)
    table = path.with_suffix(".csv")
    data_note = f" Its figures are in the table {table.name}." if table.is_file() else ""
    return Picture(
        title=title[:1].upper() + title[1:],
        file=path.name,
        uri=data_uri(data, "image/svg+xml" if svg else "image/png"),
        alt=f"Figure {path.name} as the experiment {experiment} drew it.{data_note}",
        width=width,
        height=height,
    )


def _png_size(data: bytes) -> tuple[int, int]:
    """The size that the density of the picture asks for: a chart of 144 dots an inch is not shown 1.5 times as wide."""
    if not data.startswith(_PNG):
        raise ValueError("no signature")
    width, height = struct.unpack(">II", data[16:24])
    density = data.find(b"pHYs", 0, 4096)
    scale = 1.0
    if density >= 0:
        per_metre, _, unit = struct.unpack(">IIB", data[density + 4 : density + 13])
        scale = 96 / (per_metre * 0.0254) if unit == 1 and per_metre else 1.0
    return round(width * scale), round(height * scale)


def _svg_size(data: bytes) -> tuple[int, int]:
    opening = re.search(r"<svg\b[^>]*>", data.decode("utf-8", "replace"))
    if opening is None:
        raise ValueError("no svg element")
    sides = []
    for side in ("width", "height"):
        found = re.search(rf"""\s{side}\s*=\s*["']([\d.]+)(px|pt|in|cm|mm)?["']""", opening[0])
        sides.append(round(float(found[1]) * _UNITS[found[2] or ""]) if found else 0)
    return sides[0], sides[1]
