"""What `ncu` says of each launch of a decoding step, into a table: python experiments/gpu/kernels.py -o results/gpu

Runs `experiments/gpu/profile_step.py` under `ncu` for each width; or reads what it printed, with --read BITS=FILE.
"""

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
METRICS = {  # by column
    "us": "gpu__time_duration.sum",
    "dram_mb": "dram__bytes_read.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "shared_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "lsu_percent": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "instructions": "smsp__inst_executed.sum",
    "issue_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
UNITS = {"ns": 1e-3, "us": 1, "ms": 1e3, "byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1, "Gbyte": 1e3}
BITS = ("4", "2", "0")


def fail(said: str) -> NoReturn:
    """End with one line and code 2."""
    print(f"error: {said}", file=sys.stderr)
    raise SystemExit(2)


def rows_of(bits: str, text: str) -> list[dict[str, str]]:
    """A row a launch, in order. `text` is what `ncu --csv --page raw` printed: names, units, then values."""
    lines = list(csv.reader(io.StringIO("\n".join(line for line in text.splitlines() if line.startswith('"')))))
    if len(lines) < 3:
        fail(f"ncu measured nothing: {text.strip().splitlines()[-1] if text.strip() else 'no output'}")
    names, units, *launches = lines
    found = []
    for launch in launches:
        values = dict(zip(names, launch, strict=True))
        of = dict(zip(names, units, strict=True))
        name = re.match(r"(\w+)::kernel", values["Kernel Name"])
        row = {"bits": bits, "kernel": name[1] if name else "torch", "blocks": values["Grid Size"]}
        for column, metric in METRICS.items():
            number = float(values[metric].replace(",", ""))
            unit = of[metric]
            scale = UNITS[unit] if column in ("us", "dram_mb") else {"K": 1e3, "M": 1e6, "G": 1e9}.get(unit[:1], 1.0)
            row[column] = f"{number * scale:.6g}"
        found.append(row)
    return found


def profiled(bits: str) -> str:
    """The output of `ncu` on a step at this width."""
    tool = shutil.which("ncu")
    if tool is None:
        fail("ncu, the profiler of kernels, is not installed; it comes with CUDA's toolkit")
    command = [
        tool, "--profile-from-start", "off", "--csv", "--page", "raw", "--metrics", ",".join(METRICS.values()),
        sys.executable, str(ROOT / "experiments/gpu/profile_step.py"), "--bits", bits,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "results/gpu")
    parser.add_argument("--read", action="append", default=[], metavar="BITS=FILE")
    given = parser.parse_args()
    texts = {bits: Path(file).read_text() for bits, _, file in (one.partition("=") for one in given.read)}
    rows = [row for bits in BITS for row in rows_of(bits, texts[bits] if texts else profiled(bits))]
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "kernels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(given.output / "kernels.csv")


if __name__ == "__main__":
    main()
