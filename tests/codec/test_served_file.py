"""Codebook files of version 4: what was saved is loaded, and nothing that was changed."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from served_recipes import LAYERS, D, H, learnt, make_samples

from pqkv.codec import codebook_file
from pqkv.codec.codebook_file import Calibration, CodebookHeader, ModelIdentity, load_codebooks, save_codebooks
from pqkv.errors import CodebookError

RECIPES = {
    "pqkv": (None, None),
    "means that stand still, one codebook a layer": ({"mean": "constant", "metric": "full", "scope": "layer"}, {}),
    "some pairs turn, values in principal axes": (
        {"mean": "turning", "turning_pairs": 2, "metric": "full"},
        {"transform": "klt", "gain": True},
    ),
    "layers of unlike bits": ({"layer_bits": (2, 4), "num_subspaces": None, "nbits": None}, None),
}


def make_header(options, **more):
    return CodebookHeader(
        model=ModelIdentity(name="m", family="f", config="c", weights="w"), num_layers=LAYERS, num_kv_heads=H,
        head_dim=D, num_subspaces=8, nbits=4, scope="head", channels="balanced", metric="query",
        calibration=Calibration(
            name="t", split="test", sha256="ab", tokens=9, context=3, documents=("d",), leave_out=2
        ),
        samples=5, iterations=1, seed=0, errors=((0.1, 0.25),) * LAYERS, versions={"pqkv": "0"}, **{**options, **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made():
    samples = make_samples()
    return {name: learnt(samples, *recipe) for name, recipe in RECIPES.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "codebooks.safetensors"


def same(one, other):
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    for a, b in pairs:
        assert (a.frequencies, a.hadamard) == (b.frequencies, b.hadamard)
        assert a.tensors().keys() == b.tensors().keys()
        for name, tensor in a.tensors().items():
            assert tensor.dtype == b.tensors()[name].dtype
            assert torch.equal(tensor, b.tensors()[name])


@pytest.mark.parametrize("name", RECIPES)
def test_what_was_saved_is_loaded(made, path, name):
    _, books, options = made[name]
    save_codebooks(path, books, make_header(options))
    loaded, header = load_codebooks(path)
    assert header == make_header(options)
    assert (header.version, header.recipe, header.calibration.leave_out) == (4, "pqkv", 2)
    same(loaded, books)
    assert loaded.nbytes() == books.nbytes()
    save_codebooks(path.with_name("again"), loaded, header)
    assert path.read_bytes() == path.with_name("again").read_bytes()


def signed(tensors, options, **changes):
    content = {**make_header(options).model_dump(mode="json"), **changes}
    content["checksum"] = codebook_file.tensors_checksum(content, tensors)
    return save(tensors, metadata={"pqkv-codebooks": json.dumps(content, sort_keys=True)})


@pytest.mark.parametrize("name", ["pqkv", "some pairs turn, values in principal axes"])
def test_every_tensor_is_checked(made, path, name):
    """Each left out, of another shape or type, or not finite: named, in one line."""
    _, books, options = made[name]
    save_codebooks(path, books, make_header(options))
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # a mapped file changes
    assert {part.split(".")[-1] for part in tensors} >= {"centroids", "frame", "back", "turning", "frequencies"}
    for part, tensor in tensors.items():
        others = {k: v for k, v in tensors.items() if k != part}
        changed = [tensor[..., :1].contiguous(), tensor.to(torch.int16)]
        changed += [tensor * float("nan")] if tensor.is_floating_point() else []
        for other in changed:
            path.write_bytes(signed({**others, part: other}, options))
            with pytest.raises(
                CodebookError, match=part.rsplit(".", 1)[0].replace("universal.2", "universal")
            ) as error:
                load_codebooks(path)
            assert "\n" not in str(error.value)
        if part.split(".")[-1] not in ("mean", "turning", "channels", "frequencies"):
            path.write_bytes(signed(others, options))
            with pytest.raises(CodebookError, match="is missing"):
                load_codebooks(path)


def test_a_matrix_that_is_not_the_inverse_is_refused(made, path):
    _, books, options = made["pqkv"]
    save_codebooks(path, books, make_header(options))
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # a mapped file changes
    tensors["layers.1.keys.back"] = tensors["layers.1.keys.back"] * 2
    path.write_bytes(signed(tensors, options))
    with pytest.raises(CodebookError, match=r"layers\.1\.keys\.back is not the inverse"):
        load_codebooks(path)


def test_options_that_are_not_served_are_refused(made, path):
    _, books, options = made["pqkv"]
    save_codebooks(path, books, make_header(options))
    keys = {**options["keys"].model_dump(mode="json"), "gain": True}
    path.write_bytes(signed(load_file(path), options, keys=keys))
    with pytest.raises(CodebookError, match="header is damaged"):
        load_codebooks(path)
    path.write_bytes(signed(load_file(path), options, values=None))
    with pytest.raises(CodebookError, match="header is damaged"):
        load_codebooks(path)


def test_a_newer_version_is_refused_by_name_whatever_it_holds(made, path):
    _, books, options = made["pqkv"]
    save_codebooks(path, books, make_header(options))
    path.write_bytes(signed(load_file(path), options, version=5, something_new=[1]))
    with pytest.raises(CodebookError, match=r"format version 5, this pqkv reads 1 and 2 and 3 and 4; .* newer pqkv"):
        load_codebooks(path)


@pytest.fixture(scope="module")
def sealed(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "codebooks.safetensors"
    _, books, options = made["pqkv"]
    save_codebooks(path, books, make_header(options))
    return path, path.read_bytes(), books, make_header(options)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_changed_byte_loads_as_something_else(sealed, data):
    path, original, books, header = sealed
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(changed))
    try:
        loaded, found = load_codebooks(path)
    except CodebookError as error:
        assert "\n" not in str(error)
    else:
        assert found == header
        same(loaded, books)
