"""What experiments/quality-degradation/experiment.toml may hold."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from pqkv.config import RecallForm
from pqkv.config import Settings as Base
from pqkv.kernels.faults import FAULTS


class Settings(Base):
    """Part a takes all of it, parts c and d what is a model's, part b nothing but the seed."""

    model: str = "reference"
    data: str = "stdlib"
    contexts: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (128, 512, 1024, 2047, 2048, 2049, 4096, 8192), min_length=1
    )
    decode_tokens: int = Field(64, ge=2)
    windows: int = Field(8, ge=1)
    float64_windows: int = Field(2, ge=1, description="of part d, at each context")
    bits: float = Field(4, gt=0, description="of the codes that the faults of the paged PQ code run on")
    page_size: int = Field(64, ge=1)
    recall_form: RecallForm = Field("code", description="codes of five facts a window, or the word of one")
    faults: tuple[str, ...] = Field(tuple(FAULTS), min_length=1)
    seed: int = Field(0, ge=0)

    @field_validator("faults")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in FAULTS:
                raise ValueError(f"unknown fault '{name}'; known: {', '.join(FAULTS)}")
        return names

    @model_validator(mode="after")
    def _room_to_prefill(self) -> Self:
        if min(self.contexts) <= self.decode_tokens:
            raise ValueError(f"contexts: every context must be longer than the {self.decode_tokens} decode_tokens")
        return self
