"""A model with the codes that a run of the harness is about: forwards that score, caches to generate on, its name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pqkv.codec import CodebookSet
from pqkv.codec.interface import Codec
from pqkv.config import digest_of
from pqkv.harness.config import HarnessConfig
from pqkv.lm import LanguageModel, PQKVCache, attach, load_model
from pqkv.lm.calibrate import Progress
from pqkv.lm.rope_variant import rope_variant
from pqkv.quality.cells import Coding, codec_codings, default_codings, named_codings
from pqkv.quality.checks import check_named
from pqkv.quality.control import shuffled
from pqkv.quality.modes import coded_states, exact_states
from pqkv.schedule import coded_share


@dataclass(frozen=True, slots=True)
class CodedModel:
    """A model and how its cache is coded."""

    config: HarnessConfig
    lm: LanguageModel
    coding: Coding

    @classmethod
    def load(cls, config: HarnessConfig, progress: Progress | None = None) -> CodedModel:
        """The model of `config`, ready for caches, with its codes; default codebooks are trained if they are not kept.

        Raises `ModelError`, `CodebookError` and `ConfigError` for what cannot be loaded or does not fit together.
        """
        wanted = config.evaluation()
        named = named_codings(wanted)  # a bad file is told before a model is loaded
        rope = rope_variant(config.rope, config.rope_factor)
        lm = load_model(config.pretrained, config.dtype, config.device, config.device_map, rope)
        check_named(wanted, lm, named)
        attach(lm.model)
        lm.head.check()
        codings = codec_codings if config.codec else default_codings
        return cls(config, lm, (named or codings(wanted, lm, progress))[0])

    @property
    def codes(self) -> CodebookSet | Codec | None:
        """What makes codes, of the control if that is asked for; None for the exact cache."""
        found = self.coding.codes
        return shuffled(found) if found is not None and self.config.control else found

    @property
    def pads(self) -> bool:
        """Whether sequences may be padded on the right to run together: not where tokens are coded in groups, or dealt
        to each other, across that padding.
        """
        codes = self.codes
        return not self.config.control and (not isinstance(codes, Codec) or codes.group == 1)

    def states(self, ids: Tensor) -> Tensor:
        """Last hidden states (B, T, hidden) of ids (B, T), each row as on its cache. Padding on the right is seen by no
        row before it.
        """
        if self.codes is None:
            return exact_states(self.lm, ids)
        config = self.config
        return coded_states(self.lm, ids, self.codes, config.cache(), config.mode, coded_sinks=config.coded_sinks)

    def share(self, length: int) -> float:
        """Coded columns among all that the rows of a forward over `length` tokens see."""
        if self.codes is None:
            return 0.0
        cache = {name: getattr(self.config, name) for name in ("page_size", "residual", "sink_tokens", "coded_sinks")}
        return coded_share(self.config.mode, length, **cache, chunk_size=1, decode_tokens=length)

    def cache(self) -> PQKVCache:
        """An empty cache to generate on."""
        return PQKVCache(self.lm.model.config, self.codes, self.config.cache())

    def identity(self) -> str:
        """Twelve hexadecimal digits that name model, codes and settings: what answers depend on."""
        settings = self.config.model_dump(mode="json", exclude={"codebooks", "device", "device_map"})
        return digest_of([settings, self.lm.identity(), self.coding.digest])
