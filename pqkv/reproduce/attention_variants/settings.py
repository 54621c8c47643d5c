"""What experiments/attention-variants/experiment.toml may hold."""

from __future__ import annotations

from pydantic import Field, field_validator

from pqkv.config import Settings as Base


class Settings(Base):
    """Shapes are the lesson's: 32 layers, 32 query heads of 128 unless a line of it says otherwise."""

    layers: int = Field(32, ge=1)
    heads: int = Field(32, ge=1)
    kv_heads: tuple[int, ...] = Field((32, 8, 4, 1), description="of the ways of sharing")
    head_dim: int = Field(128, ge=2)
    lengths: tuple[int, ...] = Field((512, 1024, 2048, 4096, 8192), description="rows of one head, standard and online")
    defect_lengths: tuple[int, ...] = Field((64, 512, 2048), description="rows that each defect is tried on")
    kernel_lengths: tuple[int, ...] = Field((1, 31, 32, 33, 2048), description="tokens of the emulated kernel")
    shared_lengths: tuple[int, ...] = Field((512, 4096, 32768), description="tokens of a timed step by KV heads")
    repeats: int = Field(5, ge=3, description="rounds of a race")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("kv_heads", "lengths", "defect_lengths", "kernel_lengths", "shared_lengths")
    @classmethod
    def _given(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values or min(values) < 1:
            raise ValueError("at least one, and each at least 1")
        return values

    @field_validator("kv_heads")
    @classmethod
    def _fits(cls, values: tuple[int, ...], info: object) -> tuple[int, ...]:
        heads = getattr(info, "data", {}).get("heads", 1)
        if any(heads % value for value in values):
            raise ValueError(f"{heads} query heads cannot share each of {list(values)} KV heads evenly")
        return values
