"""One prompt on several caches: each writes alone, after the same tokens, and leaves a record (kind `generation`)."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from pqkv.cell import run_cell
from pqkv.codec.geometry import unknown_bits
from pqkv.config import CacheConfig, GenerateConfig
from pqkv.cpu_path import cpu_path
from pqkv.env import environment, git_state
from pqkv.errors import ConfigError
from pqkv.generation.decode import write
from pqkv.generation.prompt import check_given, end_tokens, prompt_ids
from pqkv.generation.stream import TextStream
from pqkv.kernels import check_backend
from pqkv.kernels.faults import fault_of
from pqkv.lm import LanguageModel, PQKVCache, attach, load_model
from pqkv.lm.rope_variant import rope_variant
from pqkv.lm.tokens import TokenForm
from pqkv.lm.train import check_codebooks
from pqkv.quality.cells import Coding, codec_codings, default_codings, named_codings
from pqkv.record import Metric, Record, RecordStore

EXACT = "DynamicCache"
Progress = Callable[[str, int, int], None]
Heard = Callable[[str, str], None]  # the cache's name, and the next piece of its text


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A model, a prompt as ids (1, T), and what to write on beside the exact cache: names and codings."""

    config: GenerateConfig
    prompt: str
    lm: LanguageModel
    ids: Tensor
    form: TokenForm
    codings: dict[str, Coding]

    def records(
        self, store: RecordStore | None = None, *, force: bool = False, heard: Heard = lambda name, text: None
    ) -> Iterator[Record]:
        """The record of the exact cache, then of each coding, as they are finished; one that `store` holds is not
        written again. `heard` is given text as it is written.
        """
        env, git = environment(), git_state()
        exact: list[float] | None = None
        for name, coding in {EXACT: None, **self.codings}.items():
            record = run_cell(
                partial(self._write, name, coding, exact, heard),
                kind="generation",
                config=self.describe(name, coding),
                seed=self.config.seed,
                env=env,
                git=git,
                notes=self.lm.notes,
                store=store,
                force=force,
            )
            if coding is None and record.status == "ok":
                exact = record.samples["token_ids"]
            yield record

    def describe(self, name: str, coding: Coding | None) -> dict[str, Any]:
        """Everything that the figures of a cell depend on; settings that came later stand here where they are not what
        was done before there were any (see `pqkv.record.SCHEMA_VERSION`).
        """
        c = self.config
        own: dict[str, Any] = {"temperature": c.temperature} if c.temperature else {}
        if c.temperature and c.seed:
            own["seed"] = c.seed
        own |= {} if c.ignore_end else {"ends": sorted(end_tokens(self.lm))}
        own |= {} if self.form.bos is None else {"bos": self.form.bos}
        own |= {} if self.form.chat is None else {"chat": self.form.chat.digest}
        own |= {} if self.lm.rope is None else {"rope": str(self.lm.rope)}
        own |= {"parse_special": True} if c.parse_special else {}
        if coding is not None:
            usual, cache = CacheConfig(), c.cache()
            own |= {
                key: getattr(cache, key)
                for key in CacheConfig.model_fields
                if key != "fallback" and getattr(cache, key) != getattr(usual, key)
            }
            if c.codebooks or c.codec:
                own["codebooks"] = coding.digest
            elif coding.bits and c.recipe != "pqkv":
                own["recipe"] = c.recipe
            own |= {"scope": c.scope} if c.scope != "head" else {}
        return {
            "model": self.lm.name,
            "model_weights": self.lm.fingerprint,
            "cache": name,
            "bits": 0.0 if coding is None else self._bits(name, coding),
            "mode": "drawn" if c.temperature else "greedy",
            "prompt_sha256": hashlib.sha256(self.prompt.encode()).hexdigest(),
            "new_tokens": c.tokens,
            "context": self.ids.shape[1] + c.tokens,
            "dtype": c.dtype,
            "device": c.device,
            "threads": torch.get_num_threads(),
            **own,
        }

    def text(self, tokens: Sequence[float]) -> str:
        """What token ids of a record's sample `token_ids` spell."""
        return str(self.lm.tokenizer.decode([int(token) for token in tokens]))

    def _bits(self, name: str, coding: Coding) -> float:
        """Those that were asked for; where codes were named in another way, what they take."""
        asked = {_name_of(bits): float(bits) for bits in self.config.bits}
        return float(coding.bits) if self.config.codebooks or self.config.codec else asked[name]

    def _write(self, name: str, coding: Coding | None, exact: list[float] | None, heard: Heard) -> dict[str, Any]:
        """Fields of a record."""
        c, lm = self.config, self.lm
        cache: Cache = (
            DynamicCache(config=lm.model.config)
            if coding is None
            else PQKVCache(lm.model.config, coding.codes, c.cache())
        )
        stream = TextStream(lm.tokenizer, partial(heard, name))
        found = write(
            lm, self.ids, cache, tokens=c.tokens, ends=() if c.ignore_end else end_tokens(lm),
            temperature=c.temperature, seed=c.seed, heard=stream.hear,
        )  # fmt: skip
        stream.end()
        ids, last = [float(token) for token in found.tokens], found.growth[-1]
        row = {"text": self.text(ids), "tokens": len(ids), "allocated_bytes": last["allocated_bytes"]}
        metrics = {
            "ttft_ms": Metric(value=found.prompt_ms, unit="ms"),
            "tpot_ms": Metric(value=statistics.median(found.steps_ms), unit="ms", n=len(ids)),
            "cache_bytes": Metric(value=float(last["cache_bytes"]), unit="B"),
        }
        if coding is not None:
            share = found.attended.coded_columns / max(1, found.attended.columns)
            metrics["coded_share"] = Metric(value=share)
            if exact is not None:
                row["parts_at"] = parting(ids, exact)
        return {
            "metrics": metrics,
            "tables": {"generated": [row], "growth": found.growth},
            "samples": {"token_ids": ids},
        }


def prepare(config: GenerateConfig, prompt: str, progress: Progress | None = None, *, alone: bool = False) -> Session:
    """Load the model, turn `prompt` into ids, load or train what codes; `alone` as `prompt_ids` has it. Raises
    `PqkvError` for whatever is wrong with them, before anything is written.
    """
    tell = progress or (lambda stage, done, total: None)
    check_given(prompt)  # what needs no model is told before one is loaded
    wanted = config.evaluation()
    named = named_codings(wanted)
    check_backend(config.backend)
    cpu_path()  # where PQKV_CPU_PATH names one that this processor lacks
    if problem := unknown_bits(*filter(None, () if config.codebooks or config.codec else config.bits)):
        raise ConfigError(problem)
    if fault_of(config.backend) is not None:
        raise ConfigError(f"backend '{config.backend}' is a fault to measure; see what it does with pqkv eval")
    tell("load model", 0, 1)
    lm = load_model(
        config.model, config.dtype, config.device, config.device_map, rope_variant(config.rope, config.rope_factor)
    )
    for path, coding in zip(config.codebooks, named, strict=True):
        if coding.header is not None:
            check_codebooks(coding.header, lm, Path(path).name)
    attach(lm.model)
    ids, form = prompt_ids(lm, config, prompt, alone=alone)
    found = named or (codec_codings if config.codec else default_codings)(wanted, lm, tell)
    return Session(config, prompt, lm, ids, form, _named(config, found))


def parting(one: Sequence[float], other: Sequence[float]) -> int | None:
    """The first token, counted from 1, at which two texts part; None if they are the same."""
    for i, (a, b) in enumerate(zip(one, other, strict=False), 1):
        if a != b:
            return i
    return None if len(one) == len(other) else min(len(one), len(other)) + 1


def _named(config: GenerateConfig, found: Sequence[Coding]) -> dict[str, Coding]:
    """Codings by what tells them apart; the same one asked for twice is written on once."""
    if config.codebooks:
        names = [Path(path).name for path in config.codebooks]
        if len(set(names)) < len(names):
            names = list(config.codebooks)
        return dict(zip(names, found, strict=True))
    if config.codec:
        return {one.label: one for one in found}
    return {_name_of(bits): one for bits, one in zip(config.bits, found, strict=True)}


def _name_of(bits: float) -> str:
    return f"{bits:g} bits" if bits else "exact pages"
