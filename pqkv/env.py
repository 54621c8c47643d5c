"""What the figures were taken on: machine, versions, commit. No host name, user name or path of the machine."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pqkv
from pqkv.cpu_path import cpu_path

PACKAGES = (
    "torch", "transformers", "numpy", "numba", "faiss-cpu", "datasets", "pandas", "matplotlib", "safetensors",
    "pydantic", "typer", "pqkv",
)  # fmt: skip

GIB = 1024**3


def environment() -> dict[str, Any]:
    """Describe the machine and the software as JSON values.

    Keys: `python`, `os`, `cpu` (model), `cores` (usable by this process), `memory_bytes`, `simd` (`avx512f`, `avx2` or
    `none`), `cpu_path` (how codes are looked up, `name` and `reason`), `torch_threads`, `gpus` (a list of `name`,
    `memory_bytes`, `capability`), `cuda` (version that torch was built for, or None) and `versions` (installed packages
    only).
    """
    info = _cpuinfo()
    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",  # no build or host names
        "cpu": info.get("model name") or platform.machine() or "unknown CPU",
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
        "simd": _simd(info.get("flags", "")),
        "cpu_path": asdict(cpu_path()),
        **_torch(),
        "versions": package_versions(),
    }


def git_state() -> dict[str, Any]:
    """`{commit, dirty}` of the checkout that pqkv is imported from, or {} when it is installed or git is missing.

    `dirty` speaks of the code alone: results written beside it do not make the next record look altered.
    """
    root = Path(pqkv.__file__).resolve().parent.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    # An installed pqkv may lie inside a checkout of something else (a venv in a repository).
    if top is None or Path(top).resolve() != root:
        return {}
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", "pqkv", "cli", "pyproject.toml")
    if commit is None or changes is None:
        return {}
    return {"commit": commit, "dirty": bool(changes)}


def machine_name(env: dict[str, Any]) -> str:
    """A short label for the machine of an `environment()`: its GPUs, else cores, processor and memory."""
    gpus = Counter(str(gpu.get("name", "unknown GPU")) for gpu in env.get("gpus") or [])
    if gpus:
        return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in sorted(gpus.items()))
    cpu = _short_cpu(str(env.get("cpu") or "unknown CPU"))
    label = f"{env['cores']} x {cpu}" if env.get("cores") else cpu
    memory = env.get("memory_bytes")
    return f"{label}, {memory / GIB:.0f} GiB" if memory else label


def _short_cpu(model: str) -> str:
    """The model without trade marks, clock and core count: those are noise or stand in `cores`."""
    model = re.sub(r"\((R|TM|C)\)", " ", model, flags=re.IGNORECASE)
    model = re.sub(r"@.*$|\b\d+-Core\b|\bProcessor\b|\bCPU\b(?!$)", " ", model)
    return " ".join(model.split()) or "unknown CPU"


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; {} where there is none."""
    info: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    return info


def _simd(flags: str) -> str:
    present = flags.split()
    return next((level for level in ("avx512f", "avx2") if level in present), "none")


def usable_cores() -> int:
    """Processor cores that this process may use, a container's share rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():  # a container's share, which the affinity does not show
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def _memory_bytes() -> int | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError):  # OSError: a shared library of torch is missing
        return {"torch_threads": None, "gpus": [], "cuda": None}
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            gpus.append({
                "name": device.name,
                "memory_bytes": device.total_memory,
                "capability": f"{device.major}.{device.minor}",
            })  # fmt: skip
    return {"torch_threads": torch.get_num_threads(), "gpus": gpus, "cuda": torch.version.cuda}


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of those that are installed, and of this pqkv, installed or not."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # What runs is what was imported; a checkout used in place has no metadata, or that of another installation.
    versions["pqkv"] = pqkv.__version__
    return versions


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command in `root`, or None when it fails for whatever reason."""
    # A hook that runs pqkv exports GIT_DIR and the like, which would point at the hook's repository.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"  # `status` must not rewrite the index under someone's commit
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env=variables, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
