import hashlib
import itertools
import json
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from pqkv.codec import Codebook, CodebookSet
from pqkv.codec.codebook_file import (
    Calibration,
    CodebookHeader,
    ModelIdentity,
    check_writable,
    load_codebooks,
    save_codebooks,
)
from pqkv.errors import CodebookError

KEY = "pqkv-codebooks"
LAYERS, HEADS, DIM, M, NBITS = 2, 2, 4, 2, 2


def make_header(scope="head", **more):
    values = {
        "model": ModelIdentity(name="m", family="f", config="c", weights="w"),
        "num_layers": LAYERS, "num_kv_heads": HEADS, "head_dim": DIM, "num_subspaces": M, "nbits": NBITS,
        "scope": scope, "channels": "balanced", "metric": "query",
        "calibration": Calibration(name="t", split="test", sha256="ab", tokens=9, context=3, documents=("d",)),
        "samples": 5, "iterations": 1, "seed": 0, "errors": ((0.1, 0.25),) * LAYERS, "versions": {"pqkv": "0"},
    }  # fmt: skip
    return CodebookHeader(**{**values, **more})


def make_books(scope="head", *, channels=True, weights=True, rotation=False, layers=LAYERS):
    generator = torch.Generator().manual_seed(7)
    H = HEADS if scope == "head" else 1

    def book():
        order = torch.stack([torch.randperm(DIM, generator=generator) for _ in range(H)]) if channels else None
        metric = torch.rand(H, DIM, generator=generator) if weights else None
        centroids = torch.randn(H, M, 2**NBITS, DIM // M, generator=generator)
        turn = torch.linalg.qr(torch.randn(H, DIM, DIM, generator=generator)).Q if rotation else None
        return Codebook(centroids, order, metric, turn)

    if scope == "global":
        return CodebookSet((book(),) * layers, (book(),) * layers)
    return CodebookSet(tuple(book() for _ in range(layers)), tuple(book() for _ in range(layers)))


def tensors_of(books):
    return [
        None if part is None else (part.dtype, tuple(part.shape), part.tolist())
        for book in (*books.keys, *books.values)
        for part in (book.centroids, book.channels, book.weights, book.rotation)
    ]


def signed(tensors, **changes):
    """The bytes of a file whose checksum is right, whatever its content: made as the format's own writer would."""
    from pqkv.codec import codebook_file

    content = {**make_header().model_dump(mode="json"), **changes}
    content["checksum"] = codebook_file.tensors_checksum(content, tensors)
    return save(tensors, metadata={KEY: json.dumps(content, sort_keys=True)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "codebooks.safetensors"


@pytest.fixture
def saved(path):
    save_codebooks(path, make_books(), make_header())
    return path


@pytest.mark.parametrize("scope", ["head", "layer", "global"])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_what_was_saved_is_loaded(path, scope, channels, weights):
    books, header = make_books(scope, channels=channels, weights=weights), make_header(scope)
    save_codebooks(path, books, header)
    loaded, found = load_codebooks(path)
    assert found == header
    assert tensors_of(loaded) == tensors_of(books)
    assert loaded.num_layers == LAYERS
    assert loaded.nbytes() == books.nbytes()  # a global codebook is one codebook, not one a layer


@pytest.mark.parametrize("scope", ["head", "layer", "global"])
@pytest.mark.parametrize("weights", [False, True])
def test_a_rotation_is_saved_and_loaded(path, scope, weights):
    books = make_books(scope, channels=False, weights=weights, rotation=True)
    save_codebooks(path, books, make_header(scope, channels="opq"))
    assert tensors_of(load_codebooks(path)[0]) == tensors_of(books)


def test_the_file_of_codebooks_without_a_rotation_is_what_it_was_before_there_were_any(path):
    """The digest of this file, taken with the code before rotations: codebooks that people keep stay what they are."""
    save_codebooks(path, make_books(), make_header(version=1))
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] == "cac61efa4232"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:, :, :2].contiguous(), "has shape"),
        (lambda r: r.double(), "torch.float64"),
        (lambda r: r * float("nan"), "NaN"),
        (lambda r: r * 1.01, "not orthogonal"),
        (lambda r: r + torch.eye(DIM), "not orthogonal"),
        (lambda r: None, "has no rotation, its header says channels opq"),
    ],
)
def test_a_rotation_that_is_none_is_refused(path, change, message):
    save_codebooks(path, make_books(channels=False, rotation=True), make_header(channels="opq"))
    tensors, name = load_file(path), "layers.1.values.rotation"
    changed = change(tensors.pop(name))
    path.write_bytes(signed(tensors if changed is None else {**tensors, name: changed}, channels="opq"))
    with pytest.raises(CodebookError, match=message):
        load_codebooks(path)


def test_a_rotation_that_the_header_does_not_know_is_refused(path):
    save_codebooks(path, make_books(channels=False, rotation=True), make_header())
    with pytest.raises(CodebookError, match="has a rotation, its header says channels balanced"):
        load_codebooks(path)


def test_a_file_of_version_1_is_read_and_knows_of_no_beginning(path):
    save_codebooks(path, make_books(), make_header(version=1))
    books, header = load_codebooks(path)
    assert (header.version, header.calibration.bos, header.calibration.special_tokens) == (1, None, "parsed")
    assert header.query_errors == ()
    assert tensors_of(books) == tensors_of(make_books())


def test_a_global_codebook_is_stored_once(path):
    save_codebooks(path, make_books("global"), make_header("global"))
    assert len(load_file(path)) == 6


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_codebooks(tmp_path / name, make_books(), make_header())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_that_do_not_lie_one_after_another_are_saved_as_they_read(path):
    books = make_books(channels=False, weights=False)
    strided = books.map(lambda book: book.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)))
    save_codebooks(path, strided, make_header())
    assert tensors_of(load_codebooks(path)[0]) == tensors_of(books)


def test_saving_replaces_the_file_and_leaves_nothing_else(saved):
    save_codebooks(saved, make_books(), make_header(seed=3))
    assert load_codebooks(saved)[1].seed == 3
    assert list(saved.parent.iterdir()) == [saved]


def test_missing_folders_are_made(tmp_path):
    target = tmp_path / "a" / "b" / "c.safetensors"
    save_codebooks(target, make_books(), make_header())
    assert load_codebooks(target)[1] == make_header()


def test_a_loaded_codebook_does_not_change_with_its_file(saved):
    books = load_codebooks(saved)[0]
    with saved.open("r+b") as file:  # in place, as cp does
        file.seek(-64, os.SEEK_END)
        file.write(b"\x41" * 64)
    assert tensors_of(books) == tensors_of(make_books())


@pytest.mark.parametrize("act", [lambda p: save_codebooks(p, make_books(), make_header()), check_writable])
@pytest.mark.parametrize(
    "target", ["file/below.safetensors", "file/deeper/below.safetensors", "folder", "n" * 250, "n" * 400]
)
def test_a_target_that_cannot_be_written_is_refused_and_leaves_nothing_behind(tmp_path, act, target):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CodebookError, match=r"cannot write|is a folder"):
        act(tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_is_an_error_that_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CodebookError, match="No space left on device"):
        save_codebooks(saved, make_books(), make_header(seed=9))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_checking_that_a_place_is_writable_leaves_no_file(tmp_path):
    check_writable(tmp_path / "new.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "folder", "n" * 400, "file/below"])
def test_a_file_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CodebookError, match="no codebook file at"):
        load_codebooks(tmp_path / name)


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    for size in (*range(0, len(data), 13), len(data) - 1):
        saved.write_bytes(data[:size])
        with pytest.raises(CodebookError):
            load_codebooks(saved)


def test_bytes_after_the_end_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CodebookError):
        load_codebooks(saved)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "codebooks.safetensors"
    save_codebooks(path, make_books(), make_header())
    return path, path.read_bytes()


def load_changed(sealed, changed):
    path, _ = sealed
    path.write_bytes(changed)
    try:
        return load_codebooks(path)
    except CodebookError as error:
        assert "\n" not in str(error)
        return None


def assert_not_another(loaded):
    if loaded is not None:  # white space in the header can change and mean the same
        assert loaded[1] == make_header()
        assert tensors_of(loaded[0]) == tensors_of(make_books())


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_changed_byte_loads_as_something_else(sealed, data):
    original = sealed[1]
    position = data.draw(st.integers(0, len(original) - 1))
    mask = data.draw(st.integers(1, 255))
    changed = bytearray(original)
    changed[position] ^= mask
    assert_not_another(load_changed(sealed, bytes(changed)))


def test_a_flipped_bit_is_noticed_wherever_it_is(sealed):
    original, loadable = sealed[1], 0
    end = 8 + int.from_bytes(original[:8], "little")
    positions = (*range(3, end, 7), *range(end, len(original), 3))
    for position in positions:
        changed = bytearray(original)
        changed[position] ^= 1
        loaded = load_changed(sealed, bytes(changed))
        loadable += loaded is not None
        assert_not_another(loaded)
        assert loaded is None or position < end, "a flipped bit in a tensor was not noticed"
    assert loadable < 0.05 * len(positions)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\0" * 64, b"\xff" * 64, pickle.dumps({"a": 1}), b"PK\3\4" + b"\0" * 60]
)
def test_what_is_no_safetensors_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CodebookError, match="not a readable safetensors file"):
        load_codebooks(path)


class Trap:
    """Marks a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_is_never_run(tmp_path, path):
    torch.save({"centroids": Trap(tmp_path / "ran")}, path)
    with pytest.raises(CodebookError):
        load_codebooks(path)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(CodebookError):
        load_codebooks(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_called_that(path, metadata):
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(CodebookError, match="holds no pqkv codebooks"):
        load_codebooks(path)


@pytest.mark.parametrize("text", ["", "null", "[]", "7", '"a"', "{}", '{"checksum": 1}', "[" * 100_000, "{"])
def test_a_header_that_is_not_one_is_refused(path, text):
    path.write_bytes(save({"a": torch.zeros(1)}, metadata={KEY: text}))
    with pytest.raises(CodebookError, match="header is damaged"):
        load_codebooks(path)


def test_another_format_version_is_named(saved):
    path = saved
    path.write_bytes(signed(load_file(path), version=5))
    with pytest.raises(CodebookError, match=r"format version 5, this pqkv reads 1 and 2 and 3 and 4; .* newer pqkv"):
        load_codebooks(path)


def test_an_unknown_key_in_the_header_is_refused(saved):
    saved.write_bytes(signed(load_file(saved), surprise=1))
    with pytest.raises(CodebookError, match="header is damaged or from another version"):
        load_codebooks(saved)


def test_signed_files_load_unless_something_is_wrong(saved):
    """The ground the next tests stand on: their files are refused for what they break, not for how they are made."""
    data = signed(load_file(saved))
    assert data == saved.read_bytes()


def broken(change):
    def apply(tensors):
        name = "layers.1.values.centroids"
        return {**tensors, name: change(tensors[name])}

    return apply


def with_value(value):
    def change(centroids):
        centroids = centroids.clone()
        centroids[1, 1, 2, 0] = value
        return centroids

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_value(float("nan")), "NaN or infinity"),
        (with_value(float("inf")), "NaN or infinity"),
        (with_value(float("-inf")), "NaN or infinity"),
        (lambda c: c.double(), "is torch.float64, not torch.float32"),
        (lambda c: c.bfloat16(), "is torch.bfloat16, not torch.float32"),
        (lambda c: c.int(), "is torch.int32, not torch.float32"),
        (lambda c: c[:1].clone(), r"has shape \(1, 2, 4, 2\), its header says \(2, 2, 4, 2\)"),
        (lambda c: c[:, :, :3].clone(), "has shape"),
        (lambda c: c.flatten(), "has shape"),
        (lambda c: c[0, 0, 0, 0].clone(), r"has shape \(\)"),
        (lambda c: c[:0].clone(), "has shape"),
    ],
)  # fmt: skip
def test_centroids_that_are_not_what_the_header_says_are_named(saved, change, says):
    saved.write_bytes(signed(broken(change)(load_file(saved))))
    with pytest.raises(CodebookError, match=f"layers.1.values.centroids .*{says}"):
        load_codebooks(saved)


@pytest.mark.parametrize("order", [[0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [1, 2, 3, 4], [2**40, 0, 1, 2]])
def test_channels_that_are_not_a_permutation_are_refused(saved, order):
    tensors = load_file(saved)
    tensors["layers.0.keys.channels"][1] = torch.tensor(order)
    saved.write_bytes(signed(tensors))
    with pytest.raises(CodebookError, match=r"layers.0.keys.channels is not an order of the 4 channels"):
        load_codebooks(saved)


@pytest.mark.parametrize(("part", "dtype"), [("channels", torch.int32), ("weights", torch.float64)])
def test_channels_and_weights_are_checked_as_centroids_are(saved, part, dtype):
    tensors = load_file(saved)
    tensors[f"layers.0.keys.{part}"] = tensors[f"layers.0.keys.{part}"].to(dtype)
    saved.write_bytes(signed(tensors))
    with pytest.raises(CodebookError, match=f"layers.0.keys.{part} is {dtype}"):
        load_codebooks(saved)
    tensors[f"layers.0.keys.{part}"] = torch.zeros(HEADS, DIM + 1, dtype=dtype)
    saved.write_bytes(signed(tensors))
    with pytest.raises(CodebookError, match=f"layers.0.keys.{part} has shape"):
        load_codebooks(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    tensors = load_file(saved)
    tensors["layers.1.keys.weights"][0, 0] = float("nan")
    saved.write_bytes(signed(tensors))
    with pytest.raises(CodebookError, match=r"layers.1.keys.weights holds NaN"):
        load_codebooks(saved)


def test_missing_centroids_are_named(saved):
    tensors = load_file(saved)
    del tensors["layers.1.keys.centroids"]
    saved.write_bytes(signed(tensors))
    with pytest.raises(CodebookError, match=r"layers.1.keys.centroids is missing"):
        load_codebooks(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_subspaces": 3}, {"num_subspaces": 0}, {"num_subspaces": -2}, {"head_dim": 8}, {"head_dim": 0},
        {"nbits": 3}, {"nbits": -1}, {"nbits": 10**9}, {"num_layers": 3}, {"num_layers": 0}, {"num_layers": -1},
        {"num_kv_heads": 1}, {"scope": "layer"}, {"scope": "global"}, {"scope": "elsewhere"}, {"nbits": "two"},
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_its_tensors_is_refused(saved, changes):
    saved.write_bytes(signed(load_file(saved), **changes))
    with pytest.raises(CodebookError):
        load_codebooks(saved)


def test_the_header_says_where_the_codebooks_come_from(saved):
    with safe_open(str(saved), framework="pt") as file:
        (text,) = file.metadata().values()
    content = json.loads(text)
    assert content["calibration"]["documents"] == ["d"]
    assert content["rope"] == "post"
    assert len(content["checksum"]) == 64


def test_signatures_differ_for_names_dtypes_shapes_and_values():
    from pqkv.codec.codebook_file import tensors_checksum

    base = torch.arange(4, dtype=torch.int32)
    contents = [{"a": base}, {"b": base}, {"a": base.float()}, {"a": base.view(2, 2)}, {"a": base + 1}, {}]
    for one, other in itertools.combinations(contents, 2):
        assert tensors_checksum({}, one) != tensors_checksum({}, other)
