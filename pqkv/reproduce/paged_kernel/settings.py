"""What experiments/paged-kernel/experiment.toml may hold."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from pqkv.config import Settings as Base


class Settings(Base):
    """The report gives neither block size nor head_dim of its tests: 16 and both usual ones are taken."""

    head_dims: tuple[int, ...] = Field((64, 128), description="of the tests")
    block_size: int = Field(16, ge=2)
    heads: int = Field(8, ge=1, description="query heads of the tests")
    kv_heads: int = Field(2, ge=1, description="of the test with fewer KV heads")
    pools: tuple[int, ...] = Field((64, 256, 1024), description="blocks of a pool that is copied whole")
    waves: tuple[int, ...] = Field((32, 64), description="lanes of a wave: of the device, and that a reduction takes")
    raced: tuple[int, ...] = Field((256, 1024, 2048), description="tokens of a timed prefill")
    race_heads: int = Field(32, ge=1)
    race_head_dim: int = Field(128, ge=1)
    repeats: int = Field(5, ge=3, description="rounds of a race")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("head_dims", "pools", "waves", "raced")
    @classmethod
    def _given(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values or min(values) < 1:
            raise ValueError("at least one, and each at least 1")
        return values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads} query heads cannot share {self.kv_heads} KV heads evenly")
        return self
