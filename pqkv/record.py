"""One JSON file per cell of an experiment: what was run, where, and what came out.

A file carries a checksum over everything else in it, so a damaged record is refused instead of being quoted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from pqkv.config import digest_of
from pqkv.errors import RecordError
from pqkv.metrics import metric_info

# How records stay true across versions of pqkv. A configuration, and so the digest that names a record, says what its
# figures depend on. When a new setting comes, its key is written only where it changes figures, so that
# - a record without the key means what was done before there was one: no beginning of sequence (`bos`), windows of
#   plain text (`chat`), control tokens where text spells them (`special_tokens`), a question and its answer encoded
#   apart (`recall_pieces`);
# - a cell that does what was always done has the digest it always had, and its record is found again;
# - a cell that does anything else has another digest, and no record is taken for what it was not.
# What explains figures and decides none (`tables.text`, `coded_share`) stands outside the configuration; where an older
# record lacks it, it is derived from its configuration or not shown. Renamed or redefined figures get a new name. The
# version changes only when a reader of the older one would misread a record.
SCHEMA_VERSION = 1

_DIGEST = re.compile(r"[0-9a-f]{12}")
_FILE_NAME = re.compile(r"[0-9a-f]{12}(\.failure)?\.json")


class Metric(BaseModel):
    """A figure with its interval: `low` and `high` bound the 95% interval, `n` counts what it was taken over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    n: int | None = None


class Record(BaseModel):
    """The outcome of one cell. Raises `RecordError` for what a file could not hold or a reader could not trust:
    a number that is not finite, an unknown metric, a digest that is not the digest of `config`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: str
    config: dict[str, Any]
    digest: str
    env: dict[str, Any]
    git: dict[str, Any]
    seed: int
    status: Literal["ok", "failed"]
    error: str | None = None
    started_at: str
    seconds: float
    metrics: dict[str, Metric] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    samples: dict[str, list[float]] = {}
    notes: list[str] = []

    @field_validator("config", "env", "git", "tables", "samples", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:  # noqa: ANN401 - any JSON value
        return _plain_json(value, info.field_name)

    @field_validator("error", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:  # noqa: ANN401 - not validated yet
        # A message can quote an undecodable file name; it must not keep its own failure from being recorded.
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schema_version != SCHEMA_VERSION:
            raise RecordError(f"has schema version {self.schema_version}, this pqkv reads {SCHEMA_VERSION}")
        if self.digest != digest_of(self.config):
            raise RecordError(f"its digest {self.digest} is not the digest {digest_of(self.config)} of its config")
        if (self.status == "ok") != (self.error is None):
            raise RecordError("a failed record states its error, and only a failed one does")
        _check_utc(self.started_at)
        _plain_json(self.seconds, "seconds")
        for name, metric in self.metrics.items():
            metric_info(name)
            for part in ("value", "low", "high"):
                _plain_json(getattr(metric, part), f"metric {name}: {part}")
        return self


class RecordStore:
    """The records of one experiment: `<digest>.json` where a cell ran, `<digest>.failure.json` where it failed."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, digest: str) -> Path:
        """Where the successful record of this digest lies or would lie."""
        return self.folder / f"{_checked_digest(digest)}.json"

    def failure_path(self, digest: str) -> Path:
        """Where a failure of this digest lies or would lie."""
        return self.folder / f"{_checked_digest(digest)}.failure.json"

    def lock_path(self, digest: str) -> Path:
        """Where the lock of this digest lies while someone measures it."""
        return self.folder / f".{_checked_digest(digest)}.lock"

    def find(self, digest: str) -> Record | None:
        """The successful record of this digest, or None. Raises `RecordError` when the file is damaged or misnamed."""
        path = self.path(digest)
        if not os.path.lexists(path):
            return None
        record = read_record(path)
        if record.digest != digest:
            raise _damaged(path, f"it holds the record of {record.digest}")
        return record if record.status == "ok" else None

    def write(self, record: Record) -> Path:
        """Store `record` in one step and return its path. A success removes the failure that an earlier try left;
        a failure leaves an earlier success alone. Raises `RecordError` when the folder cannot take it.
        """
        # Validated once more, as the dicts inside a frozen record can still be changed.
        record = Record.model_validate(record.model_dump())
        failed = record.status == "failed"
        path = self.failure_path(record.digest) if failed else self.path(record.digest)
        payload = record.model_dump()
        payload["checksum"] = _checksum(payload)
        atomic_write(path, (json.dumps(payload, indent=1, allow_nan=False) + "\n").encode())
        if not failed:
            stale = self.failure_path(record.digest)
            try:
                stale.unlink(missing_ok=True)
            except OSError as error:
                raise RecordError(_one_line(f"cannot remove the old failure {stale}: {_cause(error)}")) from error
        return path

    def check_folder(self) -> None:
        """Raise `RecordError` if the folder is a file."""
        if self.folder.exists() and not self.folder.is_dir():
            raise RecordError(f"{self.folder} is a file; records need a folder of their own")

    def check_writable(self) -> None:
        """Raise `RecordError` if the folder cannot take records: better before hours of cells than after the first."""
        self.check_folder()
        probe = self.folder / f".{secrets.token_hex(4)}.tmp"
        atomic_write(probe, b"")
        probe.unlink(missing_ok=True)

    def load_all(self) -> list[Record]:
        """Every record of the folder, failures included, sorted by file name; an absent folder holds none."""
        if not self.folder.exists():
            return []
        return [read_record(path) for path in _record_files(self.folder, recursive=False)]


def read_record(path: Path | str) -> Record:
    """Read one record. Raises `RecordError`, in one line, when the file is unreadable, damaged or not a record."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise RecordError(_one_line(f"cannot read the record {path}: {_cause(error)}")) from error
    try:
        payload = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(payload, dict):
            raise ValueError(f"it holds {type(payload).__name__} instead of keys and values")
        checksum = payload.pop("checksum", None)
        if checksum != _checksum(payload):
            raise ValueError("its content does not match its checksum")
        return Record.model_validate(payload)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    except (ValueError, RecursionError, RecordError) as error:
        raise _damaged(path, str(error)) from error


def load_records(paths: Path | str | Iterable[Path | str]) -> list[Record]:
    """The records in `paths`: files are read whatever their name, folders are searched recursively for the names
    that a `RecordStore` gives. Each file counts once, in the order of the paths and of the names within a folder.
    """
    starts = [paths] if isinstance(paths, str | Path) else list(paths)
    files: dict[Path, Path] = {}
    for start in map(Path, starts):
        if not start.exists():
            raise RecordError(_one_line(f"no record or folder of records at {start}"))
        for file in _record_files(start, recursive=True) if start.is_dir() else [start]:
            files.setdefault(file.resolve(), file)
    return [read_record(file) for file in files.values()]


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all, making its folder. Raises `RecordError` when that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105 - the name the guarantee is documented under
        except BaseException:  # Ctrl-C too leaves nothing behind
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(_one_line(f"cannot write {path}: {_cause(error)}")) from error


def utc_now() -> str:
    """The time as `started_at` wants it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record_files(folder: Path, *, recursive: bool) -> Iterator[Path]:
    found = folder.rglob("*.json") if recursive else folder.glob("*.json")
    yield from sorted(path for path in found if _FILE_NAME.fullmatch(path.name))


def _plain_json(value: Any, where: str) -> Any:  # noqa: ANN401 - any JSON value
    """`value` in the types JSON gives back (tuples and arrays become lists); RecordError for what it cannot hold."""
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        value = value.tolist()
    if isinstance(value, float):
        if not isfinite(value):
            raise RecordError(f"{where} is {value}: a record holds finite numbers only")
        return float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecordError(f"{where} has the key {key!r}: JSON keys are strings")
        return {key: _plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise RecordError(f"{where} is {type(value).__name__}, which JSON cannot hold")


def _checksum(payload: dict[str, Any]) -> str:
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_utc(text: str) -> None:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise RecordError(f"started_at is '{text}', not an ISO time in UTC such as '{utc_now()}'")


def _checked_digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):  # it becomes a file name
        raise RecordError(f"'{digest}' is not a digest: twelve hexadecimal digits")
    return digest


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _damaged(path: Path, cause: str) -> RecordError:
    return RecordError(_one_line(f"{path} is not a sound record: {cause}; delete it and run again"))


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())
