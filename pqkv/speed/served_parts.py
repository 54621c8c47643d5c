"""What recipe pqkv adds to a step of product codes, one part at a time, as `served` of a bench."""

from __future__ import annotations

from pqkv.config import SERVED, Served

# the universal codebook stands behind the Hadamard matrix, with gains
SERVED_PARTS: dict[str, tuple[Served, ...]] = {
    "product codes": (),
    "int8": ("int8",),
    "frame": ("frame",),
    "frame, turning": ("frame", "turning"),
    "gains": ("gains",),
    "hadamard, universal": ("hadamard", "universal"),
    "all": SERVED,
}
