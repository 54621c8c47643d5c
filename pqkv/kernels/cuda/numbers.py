"""Queries and outputs as a model has them: float32, or 16 bits a number, which arrays hold as uint16."""

from numba import float32, uint16, uint32, uint64

from pqkv.kernels.cuda.device import bits_of, bits_of_halves, device_function, float_of, floats_of_halves

_QUIET_NAN, _EXPONENT = 0x7FC0, 0x7F800000


def number_reader(dtype):
    """read(numbers, index): number `index` of an array of float32, float16 or bfloat16, in float32."""

    @device_function
    def read_float(numbers, index):
        return numbers[uint64(index)]

    @device_function
    def read_half(numbers, index):
        return floats_of_halves(uint32(numbers[uint64(index)]))[0]

    @device_function
    def read_bfloat(numbers, index):
        return float_of(uint32(uint32(numbers[uint64(index)]) << uint32(16)))

    return {"float32": read_float, "float16": read_half, "bfloat16": read_bfloat}[dtype]


def number_writer(dtype):
    """write(numbers, index, value): `value` in float32 rounded to nearest, ties to even, as torch rounds it."""

    @device_function
    def write_float(numbers, index, value):
        numbers[uint64(index)] = value

    @device_function
    def write_half(numbers, index, value):
        numbers[uint64(index)] = uint16(bits_of_halves(value, float32(0.0)) & uint32(0xFFFF))

    @device_function
    def write_bfloat(numbers, index, value):
        bits = bits_of(value)
        odd = uint32((bits >> uint32(16)) & uint32(1))
        rounded = uint32((bits + uint32(0x7FFF) + odd) >> uint32(16))
        is_nan = (bits & uint32(0x7FFFFFFF)) > uint32(_EXPONENT)  # adding would carry it into a number
        numbers[uint64(index)] = uint16(_QUIET_NAN) if is_nan else uint16(rounded)

    return {"float32": write_float, "float16": write_half, "bfloat16": write_bfloat}[dtype]
