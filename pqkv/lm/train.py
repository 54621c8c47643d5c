"""Train codebooks for a model: calibration text -> captured keys and values -> k-means -> codebooks with provenance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import overload

import torch
from torch import Tensor

from pqkv.codec import CodebookSet, code_geometry
from pqkv.codec.codebook_file import CodebookHeader, ModelIdentity
from pqkv.codec.training import relative_error, train_codebooks
from pqkv.config import TrainConfig
from pqkv.env import package_versions
from pqkv.errors import CodebookError
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
    report = progress or (lambda stage, done, total: None)
    num_subspaces, nbits = code_geometry(config.code_shape(), lm.head_dim)
    found = calibrated or calibrate(lm, config, progress)
    samples, held_out = found.samples, found.held_out
    weights = samples.queries if config.metric == "query" else None
    trained, errors = {}, {}
    for side, vectors, metric in (("keys", samples.keys, weights), ("values", samples.values, None)):
        shuffle = torch.randperm(vectors[0].shape[1], generator=torch.Generator().manual_seed(config.seed))
        kept, rest = shuffle[held_out:], shuffle[:held_out]
        trained[side] = train_codebooks(
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
        errors[side] = [relative_error(b, layer[:, rest]) for b, layer in zip(trained[side], vectors, strict=True)]
    unseen = [layer[:, rest] for layer in samples.keys]  # sides are shuffled alike
    in_metric = map(relative_error, trained["keys"], unseen, samples.queries)
    header = CodebookHeader(
        model=ModelIdentity(**lm.identity()),
        num_layers=len(lm.coded_layers),
        num_kv_heads=lm.num_kv_heads,
        head_dim=lm.head_dim,
        num_subspaces=num_subspaces,
        nbits=nbits,
        scope=config.scope,
        channels=config.channels,
        metric=config.metric,
        calibration=found.text,
        samples=samples.keys[0].shape[1] - held_out,
        init=config.init,
        iterations=config.iterations,
        seed=config.seed,
        errors=tuple(zip(errors["keys"], errors["values"], strict=True)),
        query_errors=tuple(in_metric),
        versions=package_versions(("torch", "numba", "transformers")),
    )
    return CodebookSet(trained["keys"], trained["values"]), header


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
