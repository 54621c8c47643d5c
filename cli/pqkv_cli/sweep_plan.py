"""`pqkv sweep --plan`: a line a cell, written as the cells are made, and what all of them are expected to take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pqkv.amounts import bytes_text, seconds_text
from pqkv_cli.output import echo

if TYPE_CHECKING:
    from pqkv.sweep.config import SweepConfig
    from pqkv.sweep.shard import Shard

_TOGETHER = 100


def print_plan(
    config: SweepConfig, ours: Shard, output: Path | None, past: list[Path], *, jobs: int, runs: int
) -> None:
    """Cells with their digests, expected time and memory, and whether they are over; sums at the end."""
    from pqkv.env import environment, machine_name
    from pqkv.record import RecordStore
    from pqkv.sweep.estimate import Estimator
    from pqkv.sweep.outcome import Outcomes
    from pqkv.sweep.past import read_past, usual_start

    if output is not None:
        RecordStore(output).check_folder()
    there = [folder for folder in [output] if folder is not None and folder.is_dir()]
    known = read_past([*there, *past], lambda: machine_name(environment()))
    estimator, start = Estimator(known), usual_start(known)
    outcomes = None if output is None else Outcomes(output)
    label = max((len(_label(found)) for found in config.combinations()), default=0) + (7 if runs > 1 else 0)
    lines = Lines()
    lines.add(f"{'digest':<12}  {'cell':<{label}}  {'time':>9}  {'memory':>9}  basis")
    left = over = failed = unknown = 0
    seconds = peak = 0.0
    for cell in ours.of(config.cells(runs)):
        digest = cell.digest
        done = outcomes.find(digest) if outcomes is not None else None
        if done is not None and done.status == "ok":
            over += 1
            took = bytes_text(done.peak_rss) if done.peak_rss else "-"
            lines.add(f"{digest}  {cell.label:<{label}}  {seconds_text(done.seconds):>9}  {took:>9}  over")
            continue
        expected = estimator.of(cell)
        left, failed = left + 1, failed + (done is not None)
        time = "-" if expected.seconds is None else seconds_text(expected.seconds)
        memory = "-" if expected.peak is None else bytes_text(expected.peak)
        unknown += expected.seconds is None
        seconds, peak = seconds + (expected.seconds or 0.0), max(peak, expected.peak or 0.0)
        said = f"failed before: {done.reason}" if done is not None else expected.basis
        lines.add(f"{digest}  {cell.label:<{label}}  {time:>9}  {memory:>9}  {said}")
    lines.end()
    processes = left if config.in_own_process else min(jobs, left)
    total = (seconds + processes * (start or 0.0)) / max(1, min(jobs, left))
    echo(f"{left + over} cells ({ours}), {over} over, {left} to run" + (f", {failed} failed before" if failed else ""))
    if left > unknown:
        echo(
            f"about {seconds_text(total)} on {jobs} process{'' if jobs == 1 else 'es'}, {bytes_text(peak)} resident in "
            f"the largest; starting a process: {seconds_text(start) if start else 'not known'}"
        )
    if unknown:
        echo(f"{unknown} cells have no basis for an estimate: run some, or name folders of records with --past")
    if left > unknown:
        echo("training of codebooks that are not kept yet is not counted")


class Lines:
    """Standard output, a hundred lines at a time."""

    def __init__(self) -> None:
        self._held: list[str] = []

    def add(self, line: str) -> None:
        """One more."""
        self._held.append(line)
        if len(self._held) >= _TOGETHER:
            self.end()

    def end(self) -> None:
        """What is held back."""
        if self._held:
            echo("\n".join(self._held))
            self._held.clear()


def _label(found: dict[str, object]) -> str:
    from pqkv.sweep.cells import SweepCell

    return SweepCell("", {}, found, 1, 0, 0, ()).label
