"""Mutations of the kernels' PTX on the command line: `cd tests && python -m ptx.mutate --count 200 --csv FILE`.

Each changes one instruction that a small launch executes; a launch compared with float64 has to notice, by its result
or by a fault of the executor. Lines say what became of each, and of those that lived what was changed. The count is
shared among the kernels by their instructions. In FILE an explanation that stood beside the same mutation stays.
"""

import argparse
import csv
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))  # as conftest.py does for pytest

from ptx.backend import Device, Patched
from ptx.cases import LAUNCHED, Launched, Wrong
from ptx.faults import PtxFault
from ptx.mutations import Mutation, mutations, noting

_COLUMNS = ("seed", "kernel", "kind", "line", "before", "after", "outcome", "explanation")
SURVIVED = "survived"


@dataclass
class Target:
    """A launch that mutations are tried on: the PTX of its kernel, the lines it reaches and the statements it takes."""

    device: Device
    launched: Launched
    ptx: str = ""
    reached: set[int] = field(default_factory=set)

    def __post_init__(self):
        self.device.most_steps = type(self.device).most_steps
        self.device.change, self.device.watch = self._keep, self._note
        before = self.device.steps
        self.launched.run()
        self.most_steps = self.device.steps - before  # of all warps together: a warp that takes them has no end

    def outcome(self, mutation: Mutation) -> str:
        """What became of it: a fault, a wrong result, or `SURVIVED`."""
        self.device.watch, self.device.most_steps = None, self.most_steps
        self.device.change = lambda name, ptx: mutation.apply(_named(ptx)) if name == self.launched.kernel else ptx
        try:
            self.launched.run()
        except (Wrong, AssertionError):
            return "wrong result"
        except PtxFault as fault:
            return type(fault).__name__ if type(fault) is not PtxFault else fault.reason
        return SURVIVED

    def _keep(self, name, ptx):
        if name == self.launched.kernel:
            ptx = _named(ptx)
            assert self.ptx in ("", ptx)  # a line means one thing
            self.ptx = ptx
        return ptx

    def _note(self, name, program):
        return noting(program, self.reached) if name == self.launched.kernel else program


def _named(ptx):
    """With a short name: Numba's long one counts what was compiled before."""
    return re.sub(r"_ZN\w+?(?=_param_\d+\b|\W)", "kernel", ptx)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ptx.mutate", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="of all kernels together")
    parser.add_argument("--kernel", choices=LAUNCHED, action="append", help="one of them; all if not given")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="to write a row of each mutation to")
    parser.add_argument("--again", action="store_true", help="those of FILE, in place of others by the seed")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = Device().install(Patched())
    targets = {name: Target(device, LAUNCHED[name]) for name in asked.kernel or LAUNCHED}
    counts = shares(asked.count, {name: len(target.reached) for name, target in targets.items()})
    listed, rows = _listed(asked.csv), []
    for name, target in targets.items():
        began, outcomes = process_time(), Counter()
        if asked.again:
            chosen = [one for kernel, one in listed if kernel == name]
        else:
            chosen = mutations(target.ptx, counts[name], asked.seed, target.reached)
        for one in chosen:
            outcome = target.outcome(one)
            outcomes[outcome] += 1
            explained = listed.get((name, one), "")
            rows.append((asked.seed, name, one.kind, one.line, one.before, one.after, outcome, explained))
            if outcome == SURVIVED:
                print(f"{name}, line {one.line}, {one.kind}: {one.before}  ->  {one.after}", flush=True)
        total = sum(outcomes.values())
        what = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
        print(f"{name}: {total} of {len(target.reached)} lines: {what} ({process_time() - began:.0f} s)", flush=True)
    lived = sum(row[6] == SURVIVED for row in rows)
    print(f"{len(rows) - lived} of {len(rows)} killed")
    if asked.csv is not None:
        with asked.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *rows])
    return 0


def shares(count: int, sizes: dict[str, int]) -> dict[str, int]:
    """`count` divided in proportion to `sizes`: the largest remainders take what is left over."""
    exact = {name: count * size / sum(sizes.values()) for name, size in sizes.items()}
    shared = {name: int(value) for name, value in exact.items()}
    rest = count - sum(shared.values())
    for name in sorted(exact, key=lambda name: shared[name] - exact[name])[:rest]:
        shared[name] += 1
    return shared


def _listed(file):
    """(kernel, mutation) -> its explanation, of a file that was written before."""
    if file is None or not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as rows:
        return {
            (row["kernel"], Mutation(row["kind"], int(row["line"]), row["before"], row["after"])): row["explanation"]
            for row in csv.DictReader(rows)
        }


if __name__ == "__main__":
    sys.exit(main())
