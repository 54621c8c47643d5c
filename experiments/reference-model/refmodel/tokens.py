"""Tokenizer training, and a corpus as one file of 16-bit tokens that training maps into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pqkv.errors import ConfigError
from pqkv.text import load_corpus
from pqkv.text.files import file_documents
from pqkv.text.reading import explained

SEPARATOR = "<|endoftext|>"
_BATCH = 256


def check_sources(sources: list[Path]) -> None:
    """Raise `DataError` for the first source that is not there: reading would come to it only after all before it."""
    for source in sources:
        with explained(source):
            source.stat()


def corpus_texts(sources: list[Path], limit: int | None) -> Iterator[str]:
    """Documents of all sources in turn, and the standard library's calibration split spread among them.

    `limit` bytes of text are taken of each source in equal parts. Modules of the library that fall into the test split
    are left out here, so `stdlib` stays a fair test.
    """
    share = None if limit is None else limit // max(1, len(sources))
    library = iter(load_corpus("stdlib", "calibration", default="calibration").documents)
    for source in sources:
        taken = 0
        for number, keyed in enumerate(file_documents(source)):
            yield keyed.document.text
            taken += len(keyed.document.text.encode())
            if share is not None and taken >= share:
                break
            if number % 16 == 0 and (module := next(library, None)):
                yield module.text
    for module in library:
        yield module.text


def train_tokenizer(texts: Iterator[str], vocabulary: int, positions: int, limit: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on the first `limit` bytes; the separator is id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, limit), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SEPARATOR, model_max_length=positions, clean_up_tokenization_spaces=False
    )


def _first_bytes(texts: Iterator[str], limit: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= limit:
            return


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """`tokens` (n,) uint16 mapped from disk; document i is `tokens[starts[i] : starts[i + 1]]`, separator last."""

    tokens: np.ndarray
    starts: np.ndarray


def write_tokens(
    folder: Path, texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, progress: Callable[[int, int], None]
) -> TokenFile:
    """Tokenize once into `folder`; a finished file is taken as it is. `progress` gets (documents, tokens)."""
    done = folder / "tokens.json"
    if not done.exists():
        separator = tokenizer.eos_token_id
        starts, total = [0], 0
        with (folder / "tokens.bin").open("wb") as out:
            for batch in _batches(texts):
                for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                    out.write(np.array([*ids, separator], dtype=np.uint16).tobytes())
                    total += len(ids) + 1
                    starts.append(total)
                progress(len(starts) - 1, total)
        np.save(folder / "starts.npy", np.array(starts, dtype=np.int64))
        write_whole(done, json.dumps({"documents": len(starts) - 1, "tokens": total}))
    return TokenFile(np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r"), np.load(folder / "starts.npy"))


def claim(folder: Path, made_from: dict[str, object]) -> None:
    """Note in `folder` what its tokenizer and tokens are made from; refuse a folder that notes something else."""
    note = folder / "prepared.json"
    if not note.exists():
        write_whole(note, json.dumps(made_from, indent=1))
    kept = json.loads(note.read_text())
    if differing := [key for key, value in made_from.items() if kept.get(key) != value]:
        key = differing[0]
        raise ConfigError(
            f"{folder} was prepared with {key} = {kept.get(key)}, not {made_from[key]}: give it the same again, or "
            "another --out"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `train_tokenizer` saved, or that of another model's folder."""
    return AutoTokenizer.from_pretrained(folder)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def write_whole(path: Path, text: str) -> None:
    """Write `path` so that it is there in full or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
