"""Codebooks as the named tensors of a file, and back: every shape, dtype and number is checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pqkv.codec.codebook import Codebook, CodebookSet
from pqkv.codec.codebook_header import CodebookHeader
from pqkv.codec.composed import ComposedOptions
from pqkv.errors import CodebookError, ConfigError

_FREQUENCIES = "frequencies"  # of a mean that turns, kept as a tensor
_NOT_ORTHOGONAL = 1e-4  # rounding to float32 leaves 1e-6
_NOT_INVERSE = 0.1  # rounding to float16 leaves 1e-2 of a badly conditioned one

_Parts = dict[str, tuple[tuple[int, ...], torch.dtype]]


def tensors_of(books: CodebookSet, header: CodebookHeader) -> dict[str, Tensor]:
    """What a file holds of them; what layers share is there once."""
    named: dict[str, Tensor] = {}
    for side, layers in (("keys", books.keys), ("values", books.values)):
        shared = _shared(header)
        for i, book in enumerate(layers[:1] if shared else layers):  # one for all layers is stored once
            prefix = _prefix(i, side, shared=shared)
            for name, tensor in book.tensors().items():
                if name == "centroids" and _universal(header, side):
                    named[_universal_name(book.centroids.shape)] = _alone(book.centroids[0, 0])
                elif name in ("centroids", "scales"):
                    named[f"{prefix}.{name}"] = _alone(tensor[: _heads(header, side)])
                else:
                    named[f"{prefix}.{name}"] = _alone(tensor)
            if book.frequencies:
                named[f"{prefix}.{_FREQUENCIES}"] = torch.tensor(book.frequencies, dtype=torch.float64)
    return named


def _heads(header: CodebookHeader, side: str) -> int:
    """Of a codebook's centroids, as the file holds them."""
    options = header.options(side)
    return header.num_kv_heads if (options or header).scope == "head" else 1


def _alone(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().clone()


def _shared(header: CodebookHeader) -> bool:
    """Whether one codebook serves all layers."""
    return header.scope == "global" and header.keys is None


def _universal(header: CodebookHeader, side: str) -> bool:
    options = header.options(side)
    return options is not None and options.scope == "universal"


def _universal_name(shape: Sequence[int]) -> str:
    """Of a codebook that all subspaces of (1, M, C, d_sub) share, and layers of this shape."""
    _, _, C, d_sub = shape
    return f"universal.{d_sub}.{(C - 1).bit_length()}"


def _prefix(layer: int, side: str, *, shared: bool) -> str:
    return f"global.{side}" if shared else f"layers.{layer}.{side}"


def books_of(path: Path, header: CodebookHeader, tensors: dict[str, Tensor]) -> CodebookSet:
    """The codebooks that the tensors of a file are. Raises `CodebookError` for what does not fit its header."""
    if header.head_dim % header.num_subspaces:
        raise CodebookError(f"{path}: {header.num_subspaces} subspaces do not divide head_dim {header.head_dim}")
    sides = []
    for side in ("keys", "values"):
        shared = _shared(header)
        count = 1 if shared else header.num_layers
        try:
            layers = [_book(header, side, i, _prefix(i, side, shared=shared), tensors) for i in range(count)]
        except (CodebookError, ConfigError) as error:
            raise CodebookError(f"{path}: {error}; train it again") from error
        sides.append(tuple(layers * header.num_layers if shared else layers))
    return CodebookSet(sides[0], sides[1])


def _book(header: CodebookHeader, side: str, layer: int, name: str, tensors: dict[str, Tensor]) -> Codebook:
    options = header.options(side)
    wanted, optional = _parts(header, side, layer, name, tensors)
    found: dict[str, Tensor] = {}
    for part, (shape, dtype) in {**wanted, **optional}.items():
        if part == "centroids" and _universal(header, side):
            one = _checked(_universal_name(shape), shape[2:], dtype, tensors)
            tensor = None if one is None else one.expand(shape)
        else:
            tensor = _checked(f"{name}.{part}", shape, dtype, tensors)
        if tensor is not None:
            found[part] = tensor
        elif part in wanted:
            raise CodebookError(f"{name}.{part} is missing")
    _check_numbers(header, name, found, product=options is None)
    if options is not None and "channels" in found:  # each head has its own order, if of the same centroids
        for part in {"centroids", "scales"} & found.keys():
            found[part] = found[part].expand(header.num_kv_heads, *found[part].shape[1:])
    frequencies = tuple(tensors[f"{name}.{_FREQUENCIES}"].tolist()) if "turning" in found else ()
    by_hadamard = options is not None and options.transform == "hadamard" and "frame" not in found
    return Codebook(**found, frequencies=frequencies, hadamard=by_hadamard)


def _parts(
    header: CodebookHeader, side: str, layer: int, name: str, tensors: dict[str, Tensor]
) -> tuple[_Parts, _Parts]:
    """Shapes and dtypes of what a codebook has, and of what it may have."""
    options, D = header.options(side), header.head_dim
    M, nbits = header.layer_shape(side, layer)
    heads = _heads(header, side)
    shape = (heads, M, 2**nbits, D // M)
    if options is None:
        return {"centroids": (shape, torch.float32)}, {
            "channels": ((heads, D), torch.int64),
            "weights": ((heads, D), torch.float32),
            "rotation": ((heads, D, D), torch.float32),
        }
    wanted, optional = _composed_parts(header, options, name, tensors)
    if options.centroids == "int8":
        wanted["scales"] = ((heads, M, D // M), torch.float32)
    wanted["centroids"] = (shape, torch.int8 if options.centroids == "int8" else torch.float32)
    return wanted, {"channels": ((header.num_kv_heads, D), torch.int64), **optional}


def _check_numbers(header: CodebookHeader, name: str, found: dict[str, Tensor], *, product: bool) -> None:
    """Raise `CodebookError` for an order that is none, and for matrices that are not what their names say."""
    D = header.head_dim
    if "channels" in found and not torch.equal(
        found["channels"].sort(-1).values, torch.arange(D).expand_as(found["channels"])
    ):
        raise CodebookError(f"{name}.channels is not an order of the {D} channels")
    rotation = found.get("rotation")
    if product and (rotation is None) == (header.channels == "opq"):
        raise CodebookError(
            f"{name} has {'no' if rotation is None else 'a'} rotation, its header says channels {header.channels}"
        )
    if rotation is not None and float((rotation @ rotation.mT - torch.eye(D)).abs().max()) > _NOT_ORTHOGONAL:
        raise CodebookError(f"{name}.rotation is not orthogonal")
    if "frame" in found:
        product_of = found["frame"].double() @ found["back"].double()
        if float((product_of - torch.eye(D)).abs().max()) > _NOT_INVERSE:
            raise CodebookError(f"{name}.back is not the inverse of {name}.frame")


def _composed_parts(
    header: CodebookHeader, options: ComposedOptions, name: str, tensors: dict[str, Tensor]
) -> tuple[_Parts, _Parts]:
    """Shapes and dtypes of what a composed side has beside centroids, and of what it may have."""
    Hkv, D = header.num_kv_heads, header.head_dim
    kept = tensors.get(f"{name}.back")
    dtype = torch.float32 if kept is not None and kept.dtype == torch.float32 else torch.float16
    frame: _Parts = dict.fromkeys(("frame", "back"), ((Hkv, D, D), dtype))
    by_hadamard = options.transform == "hadamard" and options.metric == "none"
    wanted: _Parts = {}
    if (options.transform != "none" or options.metric != "none") and not by_hadamard:
        wanted |= frame
    if options.gain:
        wanted["middle_gain"] = ((Hkv,), torch.float32)
    optional: _Parts = {}
    if options.mean != "none":
        optional["mean"] = ((Hkv, D), torch.float32)
    if options.mean == "turning" and f"{name}.turning" in tensors:
        pairs = tensors.get(f"{name}.{_FREQUENCIES}")
        if pairs is None or pairs.ndim != 1 or pairs.dtype != torch.float64 or not 0 < 2 * len(pairs) <= D:
            raise CodebookError(f"{name}.{_FREQUENCIES} are not up to {D // 2} numbers of float64")
        if not torch.isfinite(pairs).all():
            raise CodebookError(f"{name}.{_FREQUENCIES} holds NaN or infinity")
        optional["turning"] = ((Hkv, 2 * len(pairs)), torch.float32)
    return wanted, optional


def _checked(name: str, shape: tuple[int, ...], dtype: torch.dtype, tensors: dict[str, Tensor]) -> Tensor | None:
    """A tensor of the file, None where it has none of this name."""
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if tuple(tensor.shape) != shape:
        raise CodebookError(f"{name} has shape {tuple(tensor.shape)}, its header says {shape}")
    if tensor.dtype != dtype:
        raise CodebookError(f"{name} is {tensor.dtype}, not {dtype}")
    if not torch.isfinite(tensor).all():
        raise CodebookError(f"{name} holds NaN or infinity")
    return tensor
