"""Train codebooks for a model: calibration text -> captured keys and values -> k-means -> codebooks with provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import overload

import torch
from torch import Tensor

from pqkv.codec import CodebookSet, code_geometry
from pqkv.codec.catalog import CodecSpec
from pqkv.codec.codebook_header import FORMAT_VERSION, PRODUCT_VERSION, CodebookHeader, ModelIdentity
from pqkv.codec.composed import ComposedOptions, learn_layers
from pqkv.codec.samples import Samples
from pqkv.codec.served import served_books, served_options
from pqkv.codec.training import relative_error, train_codebooks
from pqkv.config import TrainConfig
from pqkv.env import package_versions
from pqkv.errors import CodebookError, ConfigError
from pqkv.lm.calibrate import Calibrated, Progress, calibrate
from pqkv.lm.model import LanguageModel


class _Rows(Sequence[Tensor]):
    """Layers (Hkv, N, D) cut down to some of their vectors when asked for: never is a side copied as a whole."""

    def __init__(self, layers: Sequence[Tensor], rows: Tensor) -> None:
        self._layers, self._rows = layers, rows

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return _Rows(self._layers[index], self._rows)
        return self._layers[index][:, self._rows]


def train(
    lm: LanguageModel,
    config: TrainConfig,
    progress: Progress | None = None,
    calibrated: Calibrated | None = None,
) -> tuple[CodebookSet, CodebookHeader]:
    """Capture (unless `calibrated` is given), train, measure on held-out positions. Same seed, same bytes.

    Beside the model and one forward over a window it holds `memory_of_samples` and one layer's vectors a few times
    more.
    """
    shape = config.code_shape()
    if config.codec:  # before the model runs
        shape = recipe_options(config)["keys"].shape(0) or shape
    num_subspaces, nbits = code_geometry(shape, lm.head_dim)
    for side, given in (("keys", config.key_layer_bits), ("values", config.value_layer_bits)):
        if given and len(given) != len(lm.coded_layers):
            raise ConfigError(f"{len(given)} bits of {side} by layer, and {lm.name} has {len(lm.coded_layers)} to code")
    found = calibrated or calibrate(lm, config, progress)
    samples = found.samples
    shuffle = torch.randperm(samples.keys[0].shape[1], generator=torch.Generator().manual_seed(config.seed))
    kept, rest = shuffle[found.held_out :], shuffle[: found.held_out]
    report = progress or (lambda stage, done, total: None)
    ours: dict[str, ComposedOptions] = {}
    if config.recipe == "pqkv":
        ours = recipe_options(config, turning=samples.rotary is not None)
        books = _compose(ours, samples, kept, config.seed, report)
    else:
        books = _product(config, samples, kept, report)
    positions = None if samples.positions is None else samples.positions[rest]
    errors = [
        [relative_error(book, layer[:, rest], positions=positions) for book, layer in zip(side, layers, strict=True)]
        for side, layers in ((books.keys, samples.keys), (books.values, samples.values))
    ]
    in_metric = [
        relative_error(book, layer[:, rest], weights, positions)
        for book, layer, weights in zip(books.keys, samples.keys, samples.queries, strict=True)
    ]
    header = CodebookHeader(
        version=FORMAT_VERSION if ours else PRODUCT_VERSION,
        model=ModelIdentity(**lm.identity()),
        num_layers=len(lm.coded_layers),
        num_kv_heads=lm.num_kv_heads,
        head_dim=lm.head_dim,
        num_subspaces=num_subspaces,
        nbits=nbits,
        scope=config.scope if not ours or ours["keys"].scope == "head" else "layer",
        channels=config.channels,
        metric=config.metric,
        calibration=found.text,
        samples=len(kept),
        init=config.init,
        iterations=config.iterations,
        seed=config.seed,
        errors=tuple(zip(*errors, strict=True)),
        query_errors=tuple(in_metric),
        versions=package_versions(("torch", "numba", "transformers")),
        **ours,
    )
    return books, header


def recipe_options(config: TrainConfig, *, turning: bool = True) -> dict[str, ComposedOptions]:
    """What recipe pqkv is of keys and of values: what the quality lab found best of what is served (its README). With a
    rotary embedding that is not understood nothing is known to turn. A codec that is named says all itself.
    """
    if config.codec:
        return served_options(CodecSpec.parse(config.codec))
    shape = {"bits": config.bits, "num_subspaces": config.num_subspaces, "nbits": config.nbits}
    keys, values = (
        {"layer_bits": given} if given else shape for given in (config.key_layer_bits, config.value_layer_bits)
    )
    return {
        "keys": ComposedOptions(
            **keys,
            mean="turning" if turning else "constant",
            metric="full",
            transform="klt",
            scope="layer" if config.scope == "layer" else "head",
            centroids="int8",
            iterations=config.iterations,
        ),
        "values": ComposedOptions(**values, gain=True, transform="hadamard", grouping="adjacent", scope="universal"),
    }


def _compose(
    options: dict[str, ComposedOptions], samples: Samples, kept: Tensor, seed: int, report: Progress
) -> CodebookSet:
    """Recipe pqkv."""
    positions = None if samples.positions is None else samples.positions[kept]
    rows = replace(samples, keys=_Rows(samples.keys, kept), values=_Rows(samples.values, kept), positions=positions)
    states = {
        side: learn_layers(own, side, rows, seed, partial(report, f"train {side}")) for side, own in options.items()
    }
    return served_books(
        options["keys"], states["keys"], options["values"], states["values"], num_layers=len(samples.keys)
    )


def _product(config: TrainConfig, samples: Samples, kept: Tensor, report: Progress) -> CodebookSet:
    """Product codes of the vectors as they are."""
    num_subspaces, nbits = code_geometry(config.code_shape(), samples.keys[0].shape[2])
    weights = samples.queries if config.metric == "query" else None
    sides = [
        train_codebooks(
            _Rows(vectors, kept),
            num_subspaces,
            nbits,
            scope=config.scope,
            iterations=config.iterations,
            seed=config.seed,
            channels=config.channels,
            init=config.init,
            weights=metric,
            progress=partial(report, f"train {side}"),
        )
        for side, vectors, metric in (("keys", samples.keys, weights), ("values", samples.values, None))
    ]
    return CodebookSet(sides[0], sides[1])


def memory_of_samples(lm: LanguageModel, config: TrainConfig) -> int:
    """Bytes of the keys and values that a training keeps, float32, at most: of every token run through the model."""
    return config.calibration_tokens * 8 * len(lm.coded_layers) * lm.num_kv_heads * lm.head_dim


def check_codebooks(header: CodebookHeader, lm: LanguageModel, path: str) -> None:
    """Raise `CodebookError` unless the codebooks were trained for this very model."""
    shape = (header.num_layers, header.num_kv_heads, header.head_dim)
    actual = (len(lm.coded_layers), lm.num_kv_heads, lm.head_dim)
    if shape != actual:
        raise CodebookError(
            f"{path}: codebooks for {header.model.name} (layers, KV heads, head_dim = {shape}), "
            f"but {lm.name} has {actual}; train codebooks for this model"
        )
    if (header.model.config, header.model.weights) != (lm.config_digest, lm.fingerprint):
        raise CodebookError(
            f"{path}: codebooks were trained for {header.model.name} with other weights or settings than {lm.name}; "
            "train codebooks for this model"
        )
