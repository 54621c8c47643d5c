"""An executor of PTX on NumPy arrays, stricter than a GPU: what it lets pass has read and written only what it may."""

from ptx.faults import PtxFault, UnknownForm
from ptx.launch import Launch, launch
from ptx.memory import GlobalMemory
from ptx.program import Program, load

__all__ = ["GlobalMemory", "Launch", "Program", "PtxFault", "UnknownForm", "launch", "load"]
