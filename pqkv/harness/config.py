"""The model arguments of `pqkv lm-eval`: which model, coded how."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pqkv.config import CacheConfig, Dtype, EvalConfig, Layout, Recipe, Rope, Scope, Settings, check_rope_factor

OF_THE_HARNESS = (  # what `PQKVLM` takes of model arguments for the harness's own model
    "add_bos_token", "chat_template_args", "enable_thinking", "max_length", "prefix_token_id", "think_end_token",
)  # fmt: skip


class HarnessConfig(Settings):
    """What stands in `--model_args`. In `mode` continuations are scored, in one forward: as decoding token by token
    would see them, or with every column coded but the first `coded_sinks`. Generation runs on the real cache in either.
    """

    pretrained: str = "reference"
    dtype: Dtype = "float32"
    device: str = "cpu"
    device_map: str | None = None
    rope: Rope = "default"
    rope_factor: float | None = Field(None, gt=1)
    codebooks: str | None = Field(None, description="a file, a folder or a hub id")
    bits: float | None = Field(None, description="of default codebooks; 0 is the exact cache; absent: 4")
    codec: str | None = Field(None, description="a way of coding by name; its options with ; in place of commas")
    recipe: Recipe = "pqkv"
    scope: Scope = "head"
    mode: Literal["exact-schedule", "all-coded"] = "exact-schedule"
    coded_sinks: int = Field(0, ge=0)
    control: bool = Field(False, description="codes dealt to the wrong tokens")
    page_size: int = Field(64, ge=1, le=4096)
    residual: int = Field(128, ge=1)
    sink_tokens: int = Field(4, ge=0)
    key_layout: Layout = "transposed"
    value_layout: Layout = "transposed"
    backend: str = "auto"
    fallback: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rope_factor(self.rope, self.rope_factor)
        if sum(given is not None for given in (self.codebooks, self.bits, self.codec)) > 1:
            raise ValueError("give one of codebooks, bits and codec")
        if self.coded_sinks and self.mode != "all-coded":
            raise ValueError("coded_sinks are the exact tokens of mode=all-coded; sink_tokens those of the schedule")
        if self.exact and (self.control or self.mode != "exact-schedule"):
            raise ValueError("bits=0 is the exact cache: it has no control and no mode")
        self.cache()
        return self

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Self:
        """Model arguments as lm-eval parsed them. Raises `ConfigError` that says what is wrong and what is known."""
        given = {k.replace("-", "_"): v for k, v in arguments.items()}
        return cls.parse(given, source="model arguments", also=OF_THE_HARNESS)

    @property
    def exact(self) -> bool:
        """Whether nothing is coded."""
        return self.bits == 0

    def cache(self) -> CacheConfig:
        """The cache these settings describe."""
        names = set(CacheConfig.model_fields) & set(type(self).model_fields)
        return CacheConfig(**{name: getattr(self, name) for name in names})

    def evaluation(self) -> EvalConfig:
        """The evaluation whose codes these are: `pqkv eval` with the same settings trains and finds the same ones."""
        names = ("dtype", "device", "device_map", "rope", "rope_factor", "recipe", "scope")
        codec = () if self.codec is None else (self.codec.replace(";", ","),)
        return EvalConfig.parse(
            {
                "model": self.pretrained,
                **{name: getattr(self, name) for name in names},
                **self.cache().model_dump(),
                "codebooks": () if self.codebooks is None else (self.codebooks,),
                "codec": codec,
                "bits": (4 if self.bits is None else self.bits,),
                "mode": ("token" if self.exact else self.mode,),
                "coded_sinks": (self.coded_sinks,),
                "context": (max(512, self.coded_sinks + 1),),
            },
            source="model arguments",
        )
