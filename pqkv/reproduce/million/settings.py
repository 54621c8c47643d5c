"""What experiments/million/experiment.toml may hold."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pqkv.config import NBITS_RANGE, Init
from pqkv.config import Settings as Base

Shape = tuple[int, int]
_LARGEST_PAGE = 4096  # of a `CacheConfig`


class Settings(Base):
    """Settings of the parts on quality, memory, pages and OPQ. A shape is (num_subspaces, nbits)."""

    model: str = "reference"
    data: tuple[str, ...] = Field((), description="texts beside stdlib's test split: files or data sets")
    contexts: tuple[int, ...] = (512, 2048)
    windows: int = Field(8, ge=1)
    shapes: tuple[Shape, ...] = ((16, 8), (32, 5), (32, 6), (32, 8), (32, 10), (32, 12))
    opq_shapes: tuple[Shape, ...] = ((16, 8), (32, 6), (32, 8))
    opq_contexts: tuple[int, ...] = Field((512, 2048), description="contexts of part h")
    calibration: str = Field("stdlib", description="calibration text, of a named corpus its calibration split")
    calibration_tokens: int = Field(65536, ge=1)
    calibration_context: int = Field(4096, ge=2)
    calibration_positions: int | None = Field(None, ge=2, description="windows stand up to here; none: all at 0")
    samples: int = Field(16384, ge=1, description="vectors per codebook; more than the centroids of the widest code")
    init: Init = Field("random", description="where k-means begins (MILLION: where FAISS does)")
    iterations: int = Field(25, ge=1, description="k-means iterations (MILLION: 25)")
    distances: float = Field(4e11, gt=0, description="a set of codebooks gets fewer iterations rather than more work")
    least_iterations: int = Field(5, ge=1)
    memory_shapes: tuple[Shape, ...] = Field(((16, 8), (32, 6), (32, 8)), description="for head_dim 64")
    memory_models: tuple[str, ...] = Field(("llama-2-7b", "llama-3.1-8b"), description="shapes beside the model's")
    lengths: tuple[int, ...] = (2048, 4096, 32768, 131072)
    verify_up_to: int = Field(8192, ge=0, description="caches of up to so many tokens are filled and measured too")
    outlier_scales: tuple[float, ...] = Field(
        (1, 4, 16, 64), description="times that a channel or token is made larger"
    )
    page_shape: Shape = (32, 8)
    page_context: int = Field(2048, ge=2)
    page_windows: int = Field(8, ge=1)
    page_sizes: tuple[int, ...] = (16, 32, 64, 128, 256)
    residuals: tuple[int, ...] = (64, 128, 256)
    prompt: int = Field(512, ge=1, description="tokens before flushes are counted: past the first")
    decoded: int = Field(1024, ge=1, description="tokens decoded one by one while flushes are counted")
    ragged: tuple[int, int] = Field((512, 4096), description="lengths of the sequences whose unused slots are counted")
    sequences: int = Field(8, ge=1)
    pool_pages: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000)
    pool_calls: int = Field(20_000, ge=100, description="single calls timed")
    pool_growths: int = Field(5, ge=1, description="pools grown once, and that call timed")
    listed_tokens: int = Field(1024, ge=256, description="steps of the report's listings")
    listed_heads: int = Field(8, ge=1, description="KV heads of them")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("shapes", "opq_shapes", "memory_shapes")
    @classmethod
    def _widths(cls, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        if not all(M >= 1 and NBITS_RANGE[0] <= nbits <= NBITS_RANGE[1] for M, nbits in shapes):
            raise ValueError(f"a shape is [subspaces, nbits], nbits from {NBITS_RANGE[0]} to {NBITS_RANGE[1]}")
        return shapes

    @field_validator(
        "contexts", "shapes", "opq_shapes", "opq_contexts", "memory_shapes", "lengths", "page_sizes", "residuals",
        "pool_pages", "outlier_scales",
    )  # fmt: skip
    @classmethod
    def _not_empty(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("at least one is needed")
        return values

    @field_validator("lengths", "residuals", "pool_pages", "ragged")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 1 for value in values):
            raise ValueError(f"{min(values)}: must be at least 1")
        return values

    @field_validator("contexts", "opq_contexts")
    @classmethod
    def _contexts(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 2 for value in values):
            raise ValueError(f"{min(values)}: a context has at least 2 tokens")
        return values

    @field_validator("page_sizes")
    @classmethod
    def _page_sizes(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := [value for value in values if not 1 <= value <= _LARGEST_PAGE]:
            raise ValueError(f"{wrong[0]}: a page holds 1 to {_LARGEST_PAGE} tokens")
        return values

    @field_validator("ragged")
    @classmethod
    def _ragged(cls, values: tuple[int, int]) -> tuple[int, int]:
        if values[0] > values[1]:
            raise ValueError(f"[shortest, longest], but {values[0]} is more than {values[1]}")
        return values

    @field_validator("memory_models")
    @classmethod
    def _models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from pqkv.lm.shapes import SHAPES

        if unknown := [name for name in names if name not in SHAPES]:
            raise ValueError(f"no shape is called '{unknown[0]}'; known: {', '.join(SHAPES)}")
        return names

    @model_validator(mode="after")
    def _a_page_fits(self) -> Self:
        if min(self.page_sizes) > max(self.residuals):
            raise ValueError(
                f"residuals: none of {list(self.residuals)} holds a page of any of the page_sizes "
                f"{list(self.page_sizes)}; larger pages than a residual are left out"
            )
        return self

    @field_validator("page_shape")
    @classmethod
    def _width(cls, shape: Shape) -> Shape:
        return cls._widths((shape,))[0]
