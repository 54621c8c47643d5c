"""From what a user writes after `--data` to a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pqkv.config import Split
from pqkv.errors import DataError
from pqkv.text.documents import Corpus, Document, printable
from pqkv.text.files import display_name, file_documents
from pqkv.text.hub import HUB_SETS, hub_documents
from pqkv.text.passed_over import PassedOver
from pqkv.text.splits import Keyed, divide
from pqkv.text.stdlib import stdlib_documents

KNOWN_CORPORA = ("stdlib", *HUB_SETS)


def load_corpus(data: str, split: Split | None, *, default: Split) -> Corpus:
    """Return the corpus that `data` names: `stdlib`, a set of `HUB_SETS`, or a file or folder.

    `split` None means `default` for named corpora and `all` for files, which are divided only when asked.
    A known name wins over a file of that name; write `./c4` for the file. Documents without text are left out. What
    a file or folder also held and was not read stands in `Corpus.passed_over`, for the record's notes.
    Raises `DataError`, in one line, for whatever stands between the user and a corpus that has text.
    """
    if data == "stdlib":
        chosen = split or default
        return _corpus("stdlib", chosen, divide(_with_text(stdlib_documents(), data), chosen), data)
    if data in HUB_SETS:
        chosen = split or default
        documents = tuple(document for document in hub_documents(HUB_SETS[data], chosen) if document.text.strip())
        return _corpus(data, chosen, documents, data)
    path = _existing(data)
    chosen = split or "all"
    noted = PassedOver()
    kept = _with_text(file_documents(path, noted), data, noted)
    return _corpus(display_name(path), chosen, divide(kept, chosen), data, noted.lines())


def _with_text(keyed: Iterable[Keyed], data: str, noted: PassedOver | None = None) -> list[Keyed]:
    # An empty document has no token, and its digest would tie together corpora that share nothing.
    kept = [entry for entry in keyed if entry.document.text.strip()]
    if not kept:
        why = "; ".join(noted.lines()) if noted else ""
        raise DataError(
            f"{printable(data)} holds no text{f' ({why})' if why else ''}: give a file or folder with text in it"
        )
    return kept


def _corpus(
    name: str, split: Split, documents: tuple[Document, ...], data: str, passed_over: tuple[str, ...] = ()
) -> Corpus:
    if not documents:
        raise DataError(
            f"the {split} split of {printable(data)} is empty: one document in ten, by a hash, is test and one file "
            "is one document; give a folder or jsonl of more documents, or two files, each with --split all"
        )
    return Corpus(name, split, documents, passed_over)


def _existing(data: str) -> Path:
    known = f"the corpora known by name are {', '.join(KNOWN_CORPORA)}"
    if not data.strip() or "\0" in data:
        raise DataError(f"no corpus is called '{printable(data)}': {known}")
    try:
        path = Path(data).expanduser()
        found = path.exists()
    except RuntimeError as error:
        raise DataError(f"{printable(data)}: that user has no home folder here; write the path out") from error
    except OSError:
        # It exists or is at least spelled like a path; reading it says what is wrong.
        return path
    if found:
        return path
    if any(mark in data for mark in "/\\.~"):
        raise DataError(f"there is no file or folder {printable(data)}: check the path; {known}")
    raise DataError(f"no corpus and no file is called '{printable(data)}': {known}")
