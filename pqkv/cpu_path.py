"""Which instructions of this processor are used, by name: for look-ups in byte tables, and for pages of vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pqkv.errors import KernelError

FORCED = "PQKV_CPU_PATH"
PATHS = ("float", "portable", "avx2", "vnni", "avx512")  # in a compiled function's type a path is its place here
NEEDS = {  # LLVM's names, in each of the forms that a processor can have them in
    "avx2": (("avx2", "fma"),),
    "vnni": (("avx2", "fma", "avxvnni"), ("avx2", "fma", "avx512vnni", "avx512vl")),
    "avx512": (("avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vnni", "fma"),),
}
_WIDTHS = {"portable": (4, 6, 8), "avx2": (4, 6), "vnni": (4, 6), "avx512": (4, 6, 8)}  # of codes, in bits


@dataclass(frozen=True, slots=True)
class CpuPath:
    """The path that codes take, and why it is this one."""

    name: str
    reason: str
    forced: bool = False

    def allowed(self, features: Mapping[str, bool]) -> dict[str, bool]:
        """The features of a processor that pages of vectors may use: all of them, or where "portable", "avx2" or "vnni"
        is forced none that another processor of that name could lack.
        """
        if not self.forced or self.name not in ("portable", "avx2", "vnni"):
            return dict(features)
        kept = self.name != "portable"
        return {name: here and kept and not name.startswith("avx512") for name, here in features.items()}

    def serves(self, nbits: int) -> bool:
        """Whether codes of so many bits are looked up in bytes here."""
        return nbits in _WIDTHS.get(self.name, ())


def choose_path(forced: str | None, features: Mapping[str, bool]) -> CpuPath:
    """The path called `forced`, or the best that a processor with these features (LLVM's names) has.

    Raises `KernelError` for a name that is none, and for a path whose instructions the processor lacks: compiling for
    it would end the process.
    """
    lacking = {name: _lacking(forms, features) for name, forms in NEEDS.items()}
    if forced is not None:
        if forced not in PATHS:
            raise KernelError(f"{FORCED}={forced} names no path; known: {', '.join(PATHS)}")
        if lacking.get(forced):
            missing = ", nor ".join(", ".join(_lacking((form,), features)) for form in NEEDS[forced])
            raise KernelError(
                f"{FORCED}={forced} cannot run: this processor has no {missing}; "
                f"it has {', '.join(_available(lacking))}; unset {FORCED} to take the best of them"
            )
        return CpuPath(forced, f"{FORCED} is set", forced=True)
    if not lacking["avx512"]:
        return CpuPath("avx512", "the processor has VBMI and VNNI")
    if not lacking["vnni"]:
        return CpuPath("vnni", f"the processor has VNNI and no {', '.join(lacking['avx512'])}")
    if not lacking["avx2"]:
        return CpuPath("avx2", f"the processor has no {', '.join(lacking['avx512'])}")
    return CpuPath("float", f"the processor has no {', '.join(lacking['avx2'])}")


def _lacking(forms: tuple[tuple[str, ...], ...], features: Mapping[str, bool]) -> list[str]:
    """What a processor lacks of the form that it is nearest to."""
    return min(([name for name in form if not features.get(name)] for form in forms), key=len)


def _available(lacking: Mapping[str, list[str]]) -> list[str]:
    return [name for name in PATHS if not lacking.get(name)]


@cache
def cpu_path() -> CpuPath:
    """The path of this process: `PQKV_CPU_PATH`, or the best of this processor."""
    from llvmlite.binding import get_host_cpu_features

    return choose_path(os.environ.get(FORCED) or None, get_host_cpu_features())
