"""pqkv's own way of coding, made of parts that can each be left out: mean, gain, frame, codebook, centroids' type.

A vector x at position p becomes y = F (x - mean(p)), y / gain, and one code a subspace. Every part is an option, so an
ablation is a grid of options and not a dozen codecs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from torch import Tensor

from pqkv.codec.additive import AdditiveCodebook, fit
from pqkv.codec.codebook import Codebook
from pqkv.codec.gains import gain_bytes, gains, middle_gain
from pqkv.codec.gaussian import gaussian_codebook
from pqkv.codec.geometry import code_geometry, unknown_bits
from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.kmeans import kmeans
from pqkv.codec.means import Mean, TurningMean, means
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.codec.transforms import Grouping, Metric, Transform, inverse, metric_root, order, rotation, rows
from pqkv.config import CodeShape, Settings
from pqkv.errors import ConfigError


class ComposedOptions(Settings):
    """What the parts do."""

    bits: float | None = Field(None, description="of codes, an element: 6, 4, 3, 2, 1.5, 1")
    num_subspaces: int | None = Field(None, ge=1)
    nbits: int | None = Field(None, ge=1, le=12)
    layer_bits: tuple[float, ...] = Field((), description="bits of each coded layer, 0 exact; empty: bits everywhere")
    mean: Mean = Field("none", description="taken out: none, constant, or turning with the position")
    turning_pairs: int | None = Field(None, ge=1, description="pairs of channels whose mean turns; absent: all")
    turning_every: int = Field(1, ge=1, description="tokens that share one turn of the mean")
    gain: bool = Field(False, description="a byte a token and head for the length of a vector")
    metric: Metric = Field(
        "none", description="of errors: of the queries for keys, of the output projection for values"
    )
    transform: Transform = "none"
    grouping: Grouping = Field(
        "balanced", description="channels of a subspace: neighbours, such that all spread alike, or unequally many"
    )
    scope: Literal["head", "layer", "universal"] = Field(
        "head", description="what shares a codebook; universal: none learnt"
    )
    centroids: Literal["float32", "int8"] = Field("float32", description="int8: with a scale a channel")
    rope: Literal["post", "pre"] = Field("post", description="pre: keys are coded as they are before rotary embedding")
    iterations: int = Field(25, ge=1)
    stages: int = Field(1, ge=1, description="codebooks whose centroids are added up, for as many times the channels")

    @model_serializer(mode="wrap")
    def _as_recorded(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came later stands in records and files only where it was asked for: older ones keep their names."""
        found: dict[str, Any] = whole(self)
        if self.stages == 1:
            found.pop("stages", None)
        return found

    @field_validator("layer_bits", mode="before")
    @classmethod
    def _one_layer(cls, given: object) -> object:
        return (given,) if isinstance(given, int | float) else given

    @model_validator(mode="after")
    def _check(self) -> ComposedOptions:
        CodeShape(bits=self.bits, num_subspaces=self.num_subspaces, nbits=self.nbits)
        if problem := unknown_bits(self.bits, *(bits for bits in self.layer_bits if bits)):
            raise ValueError(problem)  # now, not after the samples are captured
        if self.scope == "universal" and not self.gain:
            raise ValueError("scope universal is for vectors of length 1: take gain=true")
        if self.scope == "universal" and self.centroids == "int8":
            raise ValueError("centroids int8 have a scale a channel, and universal ones know no channel")
        if self.scope == "universal" and self.grouping == "unequal":
            raise ValueError("a universal codebook has subspaces of one length: take scope=head with grouping=unequal")
        if self.stages > 1 and (self.scope != "head" or self.centroids == "int8" or self.grouping == "unequal"):
            raise ValueError("additive codes are learnt for each head in float32, of equal subspaces")
        if self.rope == "pre" and self.mean == "turning":
            raise ValueError("before rotary embedding no mean turns: take mean=constant with rope=pre")
        return self

    def shape(self, layer: int) -> CodeShape | None:
        """Of the codes of a layer; None for one that stays exact."""
        if self.layer_bits:
            if layer >= len(self.layer_bits):
                raise ConfigError(f"layer_bits has {len(self.layer_bits)} entries, and the model a layer {layer}")
            return CodeShape(bits=self.layer_bits[layer]) if self.layer_bits[layer] else None
        given = (self.bits, self.num_subspaces, self.nbits)
        return (
            CodeShape(bits=4)
            if given == (None,) * 3
            else CodeShape(bits=given[0], num_subspaces=given[1], nbits=given[2])
        )


class Composed(SideCodec):
    """See the module."""

    Options = ComposedOptions
    calibrated = "means, frames and centroids, as its options say"
    source = "pqkv"

    options: ComposedOptions

    def __init__(self, options: Settings, side: Side, state: State) -> None:
        super().__init__(options, side, state)
        self._books: dict[tuple[int, torch.dtype], tuple[Codebook | AdditiveCodebook, Tensor, Tensor, TurningMean]] = {}

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """One layer after another."""
        assert isinstance(options, ComposedOptions)
        return learn_layers(options, side, samples, seed)

    @staticmethod
    def universals(options: ComposedOptions, shape: CodeShape, vectors: Tensor) -> State:
        """The codebook that all layers of a shape share, by its name; nothing in other scopes."""
        if options.scope != "universal":
            return {}
        M, nbits = code_geometry(shape, vectors.shape[-1])
        d_sub = vectors.shape[-1] // M
        return {_universal(d_sub, nbits): gaussian_codebook(d_sub, nbits)}

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, M), and gains (B, Hkv, T) in bytes."""
        if self.options.shape(layer) is None:
            return {"vectors": Plane(vectors)}
        book, frame, _, mean = self._of(layer, vectors.dtype)
        if self.options.rope == "pre":
            vectors = mean.rotary.take_off(vectors, positions)
        framed = (vectors - mean.at(positions).to(vectors.dtype)) @ frame.mT
        planes: dict[str, Plane] = {}
        if self.options.gain:
            middle = self.of_layer(layer, "middle_gain")
            planes["gains"] = Plane(gain_bytes(framed, middle))
            framed = framed / gains(planes["gains"].values, middle, framed.dtype)[..., None]
        return {"codes": Plane(book.encode(framed), book.nbits), **planes}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Centroids times gain, turned back, and the mean put back."""
        if "vectors" in planes:
            return planes["vectors"].values
        book, _, back, mean = self._of(layer, torch.float32)
        restored = book.decode(planes["codes"].values)
        if "gains" in planes:
            middle = self.of_layer(layer, "middle_gain")
            restored = restored * gains(planes["gains"].values, middle, restored.dtype)[..., None]
        restored = restored @ back.mT + mean.at(positions).to(restored.dtype)
        return mean.rotary.turn(restored, positions) if self.options.rope == "pre" else restored

    def universal_centroids(self, layer: int, head_dim: int) -> Tensor:
        """(1, M, C, d_sub): one codebook, seen M times."""
        shape = self.options.shape(layer)
        assert shape is not None
        M, nbits = code_geometry(shape, head_dim)
        one = self.state[_universal(head_dim // M, nbits)]
        return one.expand(1, M, *one.shape)

    def _centroids(self, layer: int, heads: int, head_dim: int) -> Tensor:
        """(Hkv, M, C, d_sub) float32."""
        if self.options.scope == "universal":
            return self.universal_centroids(layer, head_dim).expand(heads, -1, -1, -1).contiguous()
        centroids = self.of_layer(layer, "centroids")
        if self.options.centroids == "int8":
            centroids = centroids.float() * self.of_layer(layer, "scales")[..., None, :]
        return centroids.expand(heads, *centroids.shape[1:]).contiguous()

    def _of(self, layer: int, dtype: torch.dtype) -> tuple[Codebook | AdditiveCodebook, Tensor, Tensor, TurningMean]:
        """Codebook, frame F, its inverse and the mean, laid out once."""
        if (layer, dtype) not in self._books:
            back = self.of_layer(layer, "back")
            centroids = self._centroids(layer, *back.shape[:2])
            stages = self.options.stages
            book = Codebook(centroids) if stages == 1 else AdditiveCodebook(centroids.unflatten(1, (-1, stages)))
            mean = TurningMean(
                self.of_layer(layer, "mean"),
                self.of_layer(layer, "turning_mean"),
                Rotary(self.of_layer(layer, "frequencies")),
                self.options.turning_every,
            )
            self._books[layer, dtype] = book, inverse(back.double()).to(dtype), back.to(dtype), mean
        return self._books[layer, dtype]


def learn_layers(
    options: ComposedOptions,
    side: Side,
    samples: Samples,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> State:
    """What a side learns, one layer after another; `progress` counts them."""
    state: dict[str, Tensor] = {}
    metric = samples.metric(side)
    if metric is None and options.metric != "none":
        raise ConfigError(f"metric {options.metric} of {side}: the samples do not say what their errors cost")
    layers = samples.of(side)
    for layer, vectors in enumerate(layers):
        if progress is not None:
            progress(layer, len(layers))
        shape = options.shape(layer)
        if shape is None:
            continue
        rotary = samples.rotary[layer] if samples.rotary is not None else None
        moments = metric[layer] if metric is not None else None
        found = learn_layer(options, shape, vectors, samples.positions, rotary, moments, seed)
        state |= {f"{layer}.{name}": tensor for name, tensor in found.items()}
        state |= Composed.universals(options, shape, vectors)
    if progress is not None:
        progress(len(layers), len(layers))
    return state


def learn_layer(
    options: ComposedOptions,
    shape: CodeShape,
    vectors: Tensor,
    positions: Tensor | None,
    rotary: Rotary | None,
    moments: Tensor | None,
    seed: int,
) -> State:
    """Mean, frame and codebook of vectors (Hkv, N, D)."""
    H, _, D = vectors.shape
    M, nbits = code_geometry(shape, D)
    if M % options.stages:
        raise ConfigError(f"{M} codes a vector are no multiple of stages={options.stages}")
    if options.rope == "pre":
        if rotary is None or positions is None:
            raise ConfigError("rope=pre wants the positions and the rotary embedding of the samples")
        vectors = rotary.take_off(vectors, positions)
        if moments is not None:  # queries meet keys at every distance: their moments, averaged over turns of each pair
            moments = _round_moments(moments, rotary)
    constant, turning = means(options.mean, vectors, positions, rotary, moments, options.turning_pairs)
    still = Rotary(torch.empty(0).double()) if rotary is None else rotary
    taken = TurningMean(constant, turning, still, options.turning_every)
    x = vectors - (taken.at(positions).float() if positions is not None else constant[:, None])
    root = metric_root(moments if moments is not None else torch.eye(D).expand(H, D, D), options.metric)
    y = x.double() @ root.mT
    turn = rotation(options.transform, y, moments, M, nbits, seed)
    z = y @ turn.mT
    places = order(options.grouping, z, M // options.stages, nbits * options.stages)
    frame = rows(turn @ root, places)
    z = rows(z.mT, places).mT.contiguous().float()
    middle = middle_gain(z)
    if options.gain:
        z = z / gains(gain_bytes(z, middle), middle, z.dtype)[..., None]
    state = {
        "mean": constant,
        "turning_mean": turning,
        "frequencies": still.frequencies,
        "back": inverse(frame).float(),
    }
    if options.gain:
        state["middle_gain"] = middle
    if options.scope == "universal":
        return state
    return {**state, **_codebook(options, z, M, nbits, seed)}


def _universal(d_sub: int, nbits: int) -> str:
    """The name of a codebook that all layers share."""
    return f"universal.{d_sub}.{nbits}"


def _codebook(options: ComposedOptions, z: Tensor, M: int, nbits: int, seed: int) -> State:
    """Centroids (H, M, C, d_sub) of z (H, N, D); H is 1 in scope layer."""
    points = z.unflatten(-1, (M // options.stages, -1)).transpose(1, 2)  # (H, M, N, d_sub)
    if options.stages > 1:
        sums = fit(points.flatten(0, 1), nbits, options.stages, options.iterations, seed)
        return {"centroids": sums.unflatten(0, points.shape[:2]).flatten(1, 2)}
    if options.scope == "layer":
        pooled = points.transpose(0, 1).flatten(1, 2)  # (M, H * N, d_sub)
        drawn = torch.randperm(pooled.shape[1], generator=torch.Generator().manual_seed(seed))[: points.shape[2]]
        points = pooled[None, :, drawn]
    found = kmeans(points.flatten(0, 1).contiguous().numpy(), nbits, options.iterations, seed)
    centroids = torch.from_numpy(found).unflatten(0, points.shape[:2])
    if options.centroids == "float32":
        return {"centroids": centroids}
    scales = centroids.abs().amax(-2).clamp(min=1e-30) / 127  # (H, M, d_sub)
    return {"centroids": (centroids / scales[..., None, :]).round().to(torch.int8), "scales": scales}


def _round_moments(moments: Tensor, rotary: Rotary) -> Tensor:
    """Moments (H, D, D) averaged over all turns of each pair: an error before rotary embedding meets queries there."""
    half = rotary.pairs
    energy = moments.diagonal(dim1=-2, dim2=-1).clone()
    pairs = (energy[:, :half] + energy[:, half : 2 * half]) / 2
    energy[:, :half], energy[:, half : 2 * half] = pairs, pairs
    return torch.diag_embed(energy)
