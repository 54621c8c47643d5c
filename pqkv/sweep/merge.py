"""Folders of records joined into one: what only one has, what both have alike, and where they contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pqkv.errors import ConfigError
from pqkv.record import Record, RecordStore, atomic_write
from pqkv.sweep.outcome import Outcome, Outcomes

Found = dict[Path, Record]  # by the folder it lies in


@dataclass(frozen=True, slots=True)
class Conflict:
    """A record of one configuration that has other figures in other folders; `name` is its path below them."""

    name: str
    records: Found

    def different(self) -> list[str]:
        """Metrics whose values differ."""
        every = list(self.records.values())
        names = dict.fromkeys(name for record in every for name in record.metrics)
        return [name for name in names if len({_value(record, name) for record in every}) > 1]


@dataclass(slots=True)
class Merged:
    """What a merge did: records `written` and `there` before; those measured `twice` with the same figures, of which
    one stays, the first measured unless one was there; failures `outdone` by a success or a later failure; `outcomes`
    of cells; `conflicts`, which are left out; folders that were `empty`, as those of shards without cells are.
    """

    written: int = 0
    there: int = 0
    twice: int = 0
    outdone: int = 0
    outcomes: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    empty: tuple[Path, ...] = ()


def merge(folders: Sequence[Path], into: Path) -> Merged:
    """Put the records, outcomes and logs of `folders` and their sub-folders into `into`, whose own stay as they are.
    Records of one configuration with other figures are left out and returned. Raises `RecordError` for a damaged
    record, and `ConfigError` where no folder has any or one is named twice, before anything is written.
    """
    names: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"no folder of records at {folder}")
        if (other := names.setdefault(folder.resolve(), folder)) is not folder:
            raise ConfigError(f"{folder} and {other} are one folder; name each once")
    empty = tuple(folder for folder in folders if not any(folder.rglob("*.json")))
    if len(empty) == len(folders):
        raise ConfigError(f"no records in {', '.join(map(str, empty))}")
    sources = [*([into] if into.is_dir() else []), *folders]
    done, missing = Merged(empty=empty), set()
    for name, found in sorted(_by_name(sources).items()):
        if not _merge_record(name, found, into, done):
            missing.add(next(iter(found.values())).digest)
    for outcome, source in _outcomes(sources):
        _merge_outcome(outcome, source, into, missing, done)
    return done


def _by_name(sources: Sequence[Path]) -> dict[str, Found]:
    """Every record by where it would lie as a success below its folder; a success hides a failure beside it."""
    found: dict[str, Found] = defaultdict(dict)
    for source in sources:
        for folder in sorted({source, *(path.parent for path in source.rglob("*.json"))}):
            store = RecordStore(folder)
            for record in store.load_all():
                here = found[str(store.path(record.digest).relative_to(source))]
                if record.status == "ok" or source not in here:
                    here[source] = record
    return found


def _merge_record(name: str, found: Found, into: Path, done: Merged) -> bool:
    """Whether `into` has the record afterwards."""
    sound = {folder: record for folder, record in found.items() if record.status == "ok"}
    done.outdone += len(found) - (len(sound) or 1)
    if not sound:
        chosen = max(found, key=lambda folder: found[folder].started_at)
        return _put(found[chosen], (into / name).parent, done)
    conflict = Conflict(name, sound)
    if conflict.different() or len({str(record.samples) for record in sound.values()}) > 1:
        done.conflicts.append(conflict)
        return into in sound
    done.twice += len({record.started_at for record in sound.values()}) - 1
    chosen = into if into in sound else min(sound, key=lambda folder: sound[folder].started_at)
    return _put(sound[chosen], (into / name).parent, done)


def _put(record: Record, folder: Path, done: Merged) -> bool:
    store = RecordStore(folder)
    path = store.failure_path(record.digest) if record.status == "failed" else store.path(record.digest)
    if path.exists():
        done.there += 1
    else:
        store.write(record)
        done.written += 1
    return True


def _outcomes(sources: Sequence[Path]) -> list[tuple[Outcome, Path]]:
    """One of each cell with its folder: a success before a failure, then the one with more attempts."""
    best: dict[str, tuple[Outcome, Path]] = {}
    for source in sources:
        for outcome in Outcomes(source).all():
            known = best.get(outcome.digest)
            if known is None or _rank(outcome) > _rank(known[0]):
                best[outcome.digest] = outcome, source
    return list(best.values())


def _rank(outcome: Outcome) -> tuple[bool, int]:
    return outcome.status == "ok", outcome.attempts


def _merge_outcome(outcome: Outcome, source: Path, into: Path, missing: set[str], done: Merged) -> None:
    """A cell whose record was left out is not over in `into`."""
    if source == into or missing & set(outcome.records):
        return
    theirs, ours = Outcomes(source), Outcomes(into)
    log = theirs.log(outcome.digest)
    if log.is_file():
        atomic_write(ours.log(outcome.digest), log.read_bytes())
    ours.write(outcome)
    done.outcomes += 1


def _value(record: Record, name: str) -> float | None:
    metric = record.metrics.get(name)
    return None if metric is None else metric.value
