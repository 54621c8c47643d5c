"""What kernels need and Numba has no word for: 128-bit loads and copies, halves apart, fp16x2 sums, lane exchange;
and what makes a function a part of kernels.

On a device these are intrinsics of one or a few PTX instructions; under the simulator the same names are plain Python
that does the same to NumPy arrays. Kernels use nothing else that differs between the two.
"""

from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)

if SIMULATED:
    from pqkv.kernels.cuda.simulated import (
        add_halves,
        bias_step,
        bits_of,
        bits_of_halves,
        copy_four,
        device_function,
        exchange,
        finish_copies,
        float_of,
        floats_of_bfloats,
        floats_of_halves,
        high_twice,
        key_step,
        load_bfloats,
        load_floats,
        load_halves,
        low_twice,
        multiply_add_halves,
        power_of_two,
        shared_word,
        value_step,
        words_loader,
    )
else:
    from pqkv.kernels.cuda.intrinsics import (
        add_halves,
        bits_of,
        bits_of_halves,
        copy_four,
        device_function,
        exchange,
        finish_copies,
        float_of,
        floats_of_bfloats,
        floats_of_halves,
        high_twice,
        load_bfloats,
        load_floats,
        load_halves,
        low_twice,
        multiply_add_halves,
        power_of_two,
        shared_word,
    )
    from pqkv.kernels.cuda.lookups import bias_step, key_step, value_step, words_loader

# A maximum over nothing. Finite, so that the difference of two is 0 and not NaN; far below any score, so that
# 2**(LOWEST - score) is 0.
LOWEST = -1e30

__all__ = [
    "LOWEST",
    "SIMULATED",
    "add_halves",
    "bias_step",
    "bits_of",
    "bits_of_halves",
    "copy_four",
    "device_function",
    "exchange",
    "finish_copies",
    "float_of",
    "floats_of_bfloats",
    "floats_of_halves",
    "high_twice",
    "key_step",
    "load_bfloats",
    "load_floats",
    "load_halves",
    "low_twice",
    "multiply_add_halves",
    "power_of_two",
    "shared_word",
    "value_step",
    "words_loader",
]
