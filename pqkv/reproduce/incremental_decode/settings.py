"""What experiments/incremental-decode/experiment.toml may hold."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from pqkv.config import Settings as Base


class Settings(Base):
    """The report's shape is TinyLlama's."""

    layers: int = Field(22, ge=1)
    heads: int = Field(32, ge=1, description="of queries")
    kv_heads: int = Field(4, ge=1)
    head_dim: int = Field(64, ge=1)
    max_len: int = Field(2048, ge=1, description="tokens that the report's cache has room for")
    lengths: tuple[int, ...] = Field((1, 63, 64, 65, 128, 512, 2047, 2048), description="tokens after a counted step")
    raced: tuple[int, ...] = Field((64, 256, 1024, 2048, 4096, 8192, 32768), description="tokens of a timed step")
    repeats: int = Field(11, ge=3, description="rounds of a race")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("lengths", "raced")
    @classmethod
    def _lengths(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or min(lengths) < 1:
            raise ValueError("at least one, and each at least 1")
        return tuple(sorted(set(lengths)))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads} query heads cannot share {self.kv_heads} KV heads evenly")
        if max(self.lengths) > self.max_len:
            raise ValueError(f"lengths: {max(self.lengths)} is more than max_len {self.max_len}")
        return self
