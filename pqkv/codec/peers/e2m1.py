"""The float of 4 bits that MXFP4 and NVFP4 scale: a sign, two bits of exponent, one of mantissa."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 6.0
_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e2m1_codes(values: Tensor) -> Tensor:
    """The nearest float of values (...), ties to the even mantissa, past 6 it is 6: codes 0 to 15, uint8."""
    size = values.abs().clamp(max=LARGEST)
    exponent = (torch.frexp(size)[1] - 1).clamp(min=0)  # below 1 floats are as far apart as from 1 to 2
    codes = torch.ldexp(size, 1 - exponent).round() + 2 * exponent  # two floats an octave
    return codes.byte() + 8 * values.signbit().byte()


def e2m1_floats(codes: Tensor) -> Tensor:
    """What codes stand for, float32."""
    levels = torch.tensor(_LEVELS, device=codes.device)
    return torch.cat([levels, -levels])[codes.long()]
