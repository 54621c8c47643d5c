"""Attention on codes by look-up in shared memory; `kernel.py` says how."""

from pqkv.kernels.cuda.coded.kernel import coded_kernel
from pqkv.kernels.cuda.coded.variant import CodedVariant, Phase, coded_variant
from pqkv.kernels.cuda.codes import Codes

__all__ = ["CodedVariant", "Codes", "Phase", "coded_kernel", "coded_variant"]
