"""What a codebook file says about itself: the provenance that makes its numbers trustworthy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pqkv.codec.composed import ComposedOptions
from pqkv.codec.geometry import code_geometry
from pqkv.codec.served import refusal
from pqkv.config import NBITS_RANGE, Channels, CodeMetric, Init, Scope

FORMAT_VERSION = 4  # of composed codes; files of product codes are still of version 3
PRODUCT_VERSION = 3
READABLE = (1, 2, 3, 4)  # of version 1 the errors are over energy


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelIdentity(_Strict):
    """The model the codebooks were trained for."""

    name: str
    family: str
    config: str = Field(description="digest of its configuration")
    weights: str = Field(description="digest of its attention weights")


class Calibration(_Strict):
    """The text the vectors came from; `documents` are digests, so that overlap with a test text is found. `bos` is the
    token every window began with; files of version 1 knew none, and took what spells a control token for one.
    `positions` is how far windows reach: they stand at several places up to it, None (before version 3) all at 0. The
    first `leave_out` tokens of every window were not learnt from.
    """

    name: str
    split: str
    sha256: str
    tokens: int
    context: int
    positions: int | None = None
    documents: tuple[str, ...]
    bos: int | None = None
    special_tokens: Literal["parsed", "text"] = "parsed"
    leave_out: int = 0

    @property
    def reach(self) -> int:
        """Positions from 0 on that the keys came from."""
        return self.positions or self.context


class CodebookHeader(_Strict):
    """Everything a codebook file says about itself."""

    version: int = FORMAT_VERSION
    model: ModelIdentity
    num_layers: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    num_subspaces: int = Field(ge=1)
    nbits: int = Field(ge=NBITS_RANGE[0], le=NBITS_RANGE[1])
    scope: Scope
    channels: Channels
    metric: CodeMetric
    rope: str = Field("post", description="keys were taken after (post) rotary embedding")
    calibration: Calibration
    samples: int
    init: Init = Field("random", description="where k-means began")
    iterations: int
    seed: int
    errors: tuple[tuple[float, float], ...] = Field(
        description="held-out squared error of (keys, values) per layer, over squared distances to the mean"
    )
    query_errors: tuple[float, ...] = Field((), description="that of keys in the metric of the queries")
    keys: ComposedOptions | None = Field(
        None, description="what each side is made of; absent: product codes of vectors, as the fields above say"
    )
    values: ComposedOptions | None = None
    versions: dict[str, str]

    @model_validator(mode="after")
    def _both_sides(self) -> CodebookHeader:
        if (self.keys is None) != (self.values is None):
            raise ValueError("keys and values are both composed, or none is")
        for side, options in (("keys", self.keys), ("values", self.values)):
            if options is not None and (problem := refusal(options, side)):
                raise ValueError(f"{side}: {problem}")
        return self

    @property
    def recipe(self) -> str:
        """`pqkv` of composed codes, `product` of any other."""
        return "product" if self.keys is None else "pqkv"

    def options(self, side: str) -> ComposedOptions | None:
        """What keys or values are made of; None for product codes."""
        return self.keys if side == "keys" else self.values

    def layer_shape(self, side: str, layer: int) -> tuple[int, int]:
        """(M, nbits) of a layer's codes."""
        options = self.options(side)
        shape = None if options is None else options.shape(layer)
        return (self.num_subspaces, self.nbits) if shape is None else code_geometry(shape, self.head_dim)
