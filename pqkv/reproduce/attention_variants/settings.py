"""What experiments/attention-variants/experiment.toml may hold."""

from __future__ import annotations

from pydantic import Field, field_validator

from pqkv.config import RecallForm
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
    model: str = Field("reference", description="that parts d to g ask")
    recall_form: RecallForm = "code"
    text_context: int = Field(4096, ge=64, description="tokens that windows are seen through of")
    text_windows: int = Field(8, ge=1, description="stretches of text in parts d and g")
    windows: tuple[int, ...] = Field((256, 512, 1024, 2048), description="newest tokens that a query sees")
    window_bits: tuple[float, ...] = Field((0, 4), description="0 is the exact cache")
    trained: int = Field(4096, ge=2, description="tokens of the longest sequences that the model was trained on")
    reach_times: tuple[int, ...] = Field((1, 2, 4), description="lengths of part e, over the trained one")
    reach_windows: int = Field(4, ge=1)
    kept_context: int = Field(2048, ge=128, description="tokens of part f, the newest decoded")
    kept_windows: int = Field(16, ge=1)
    keep_shares: tuple[float, ...] = Field((0.5, 0.25), description="of a prompt's tokens")
    kept_bits: tuple[float, ...] = Field((6, 4, 2), description="of codes beside them")
    decode_tokens: int = Field(64, ge=2)
    pooled_context: int = Field(1024, ge=2)
    stacked_lengths: tuple[int, ...] = Field((4096, 32768), description="tokens of part h")
    stacked_window: int = Field(4096, ge=1)
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
