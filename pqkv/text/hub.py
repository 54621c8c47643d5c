"""Well-known corpora from the Hugging Face hub: one row of a table each, parquet or JSON, never a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pqkv.config import Split
from pqkv.errors import DataError
from pqkv.text.documents import Document, brief


@dataclass(frozen=True, slots=True)
class HubSet:
    """Where a corpus lies on the hub, and how its rows become documents."""

    name: str
    repository: str
    config: str | None = None
    revision: str | None = None
    column: str = "text"
    calibration: str = "train"
    test: str = "test"
    files: tuple[tuple[str, str], ...] = ()  # (split on the hub, file pattern), where it must be said
    joined: str | None = None  # what joins all rows into one document; None: a row is a document
    at_most: int | None = None  # take the first so many documents; None: all
    streaming: bool = False  # stop downloading there too: JSON only

    def parts(self, split: Split) -> tuple[str, ...]:
        """The names on the hub of the splits that make up `split`."""
        return {"calibration": (self.calibration,), "test": (self.test,), "all": (self.calibration, self.test)}[split]


C4_FILES = (("train", "en/c4-train.00000-of-01024.json.gz"), ("validation", "en/c4-validation.00000-of-00008.json.gz"))
PTB_FILES = (("train", "penn_treebank/train/*.parquet"), ("test", "penn_treebank/test/*.parquet"))
# One shard, read whole: an interpreter that leaves a stream of parquet half read aborts at exit or hangs, as the
# threads of Arrow are still reading (apache/arrow#45214).
PG19_FILES = (("train", "data/train-00000-of-*.parquet"), ("test", "data/test-00000-of-*.parquet"))

# WikiText-2 and PTB are joined as in GPTQ, whose perplexities everyone compares with.
HUB_SETS: Mapping[str, HubSet] = {
    spec.name: spec
    for spec in (
        HubSet("wikitext2", "Salesforce/wikitext", config="wikitext-2-raw-v1", joined="\n\n"),
        HubSet(
            "ptb",
            "ptb-text-only/ptb_text_only",
            revision="refs/convert/parquet",
            column="sentence",
            files=PTB_FILES,
            joined=" ",
        ),
        HubSet("c4", "allenai/c4", test="validation", files=C4_FILES, at_most=4096, streaming=True),
        HubSet("pg19", "emozilla/pg19", files=PG19_FILES, at_most=16),
    )
}


def hub_documents(spec: HubSet, split: Split) -> tuple[Document, ...]:
    """Return the documents of `split`.

    Raises `DataError` when they cannot be had, saying what was tried, and for `all` of a set that is one document
    per split: its parts were never one text.
    """
    if split == "all" and spec.joined is not None:
        raise DataError(f"{spec.name} has no split all: each of its splits is one text; use calibration or test")
    documents: list[Document] = []
    for part in spec.parts(split):
        texts = _texts(spec, part)
        if spec.joined is not None:
            documents.append(Document(f"{spec.name}/{part}", spec.joined.join(texts)))
        else:
            documents += [Document(f"{spec.name}/{part}:{row}", text) for row, text in enumerate(texts)]
    return tuple(documents)


def _texts(spec: HubSet, part: str) -> list[str]:
    tried = f"{spec.name} ({spec.repository}, split {part})"
    remedy = "--data FILE takes a local copy (text, jsonl or parquet)"
    try:
        with _without_progress_bars():
            texts: list[Any] = [row.get(spec.column) for row in _rows(spec, part)]
    # Every layer below load_dataset raises kinds of its own, and the remedy is the same for all of them.
    except Exception as error:
        if _is_unreachable(error):
            raise DataError(f"{tried}: the Hugging Face hub could not be reached; {remedy}") from error
        reason = f"{type(error).__name__}: {brief(error)}"
        raise DataError(f"{tried} could not be loaded from the Hugging Face hub ({reason}); {remedy}") from error
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{tried}: not every row has a text in column '{spec.column}'; {remedy}")
    return texts


def _rows(spec: HubSet, part: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    rows = load_dataset(
        spec.repository,
        spec.config,
        revision=spec.revision,
        # Only the file of the wanted split: the others are not even looked up.
        data_files={part: dict(spec.files)[part]} if spec.files else None,
        split=part,
        # The sizes on the card are those of all files; some releases hold one file to them (datasets#7728).
        verification_mode="no_checks" if spec.files else None,
        streaming=spec.streaming,
    )
    yield from islice(rows, spec.at_most)


def _is_unreachable(error: Exception) -> bool:
    # hub clients differ in what they raise without a network: sockets, requests or httpx
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in (
        "requests",
        "httpx",
        "httpcore",
        "aiohttp",
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The library prints nothing; progress bars come back as they were."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
