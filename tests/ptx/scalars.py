"""The fundamental types of PTX as NumPy has them. A register is 32 lanes of the unsigned integers of its width."""

from dataclasses import dataclass

import numpy as np

LANES = 32


@dataclass(frozen=True, slots=True)
class Scalar:
    """`kind` is one of p(redicate), b(its), u(nsigned), s(igned) and f(loat)."""

    name: str
    kind: str
    bits: int

    @property
    def size(self):
        return self.bits // 8

    @property
    def stored(self):
        """The dtype of a register of this width."""
        return np.dtype(bool) if self.kind == "p" else np.dtype(f"u{self.size}")

    @property
    def dtype(self):
        """The dtype that arithmetic of this type is done in."""
        return np.dtype(f"{self.kind}{self.size}".replace("s", "i")) if self.kind in "sf" else self.stored


SCALARS = {
    name: Scalar(name, name[0], int(name[1:]))
    for name in ["b8", "u8", "s8", "b16", "u16", "s16", "f16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"]
}
SCALARS["pred"] = Scalar("pred", "p", 1)

# What stands where nobody wrote: a NaN in float32 and in both halves, and an address outside every allocation.
NOBODY = {1: 0xFF, 2: 0xFEAD, 4: 0xFFFDFEAD, 8: 0xFFFDFEADFFFDFEAD}


def unwritten(dtype):
    """A register of `dtype` that nobody wrote."""
    return np.zeros(LANES, bool) if dtype.kind == "b" else np.full(LANES, NOBODY[dtype.itemsize], dtype)
