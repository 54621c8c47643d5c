"""Damaged files: codebooks, records and configurations, a thousand mutations each (ten thousand in `make test-slow`).

No mutation may crash, hang, or be taken for something else than the original.
"""

import json
import random

import pytest
import torch

from pqkv.codec import Codebook, CodebookSet
from pqkv.codec.codebook_file import CodebookHeader, load_codebooks, save_codebooks
from pqkv.config import BenchConfig, EvalConfig, TrainConfig, digest_of, read_config_file
from pqkv.errors import CodebookError, ConfigError, PqkvError, RecordError
from pqkv.record import Metric, Record, RecordStore, read_record

COUNTS = [1_000, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
WORDS = (b"1e999", b"-1", b"null", b"NaN", b"true", b'"', b"{", b"]", b"\\u0000", b"\xff\xfe", b"../../x", b"9" * 40)


def mutated(original: bytes, draw: random.Random) -> bytes:
    """One to three of: bytes changed, cut out, put in, doubled, cut off, swapped with others."""
    data = bytearray(original)
    for _ in range(draw.randint(1, 3)):
        if not data:
            break
        a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + draw.choice((1, 2, 8, 64, 10_000)))
        act = draw.randrange(7)
        if act == 0:
            data[a % len(data)] ^= 1 << draw.randrange(8)
        elif act == 1:
            data[a:b] = draw.randbytes(b - a)
        elif act == 2:
            del data[a:b]
        elif act == 3:
            data[a:a] = draw.choice(WORDS)
        elif act == 4:
            data[a:a] = data[a:b]
        elif act == 5:
            del data[a:]
        else:
            data[a:b] = draw.choice(WORDS)
    return bytes(data)


def one_line(error: PqkvError) -> None:
    assert str(error)
    assert "\n" not in str(error)
    assert "Traceback" not in str(error)


def tensors(books):
    return [
        tensor.tolist()
        for book in (*books.keys, *books.values)
        for tensor in (book.centroids, book.channels, book.weights)
        if tensor is not None
    ]


@pytest.mark.parametrize("count", COUNTS)
def test_a_mutated_codebook_file_is_refused_or_the_same(tmp_path, count):
    draw = random.Random(count)
    generator = torch.Generator().manual_seed(0)
    book = Codebook(torch.randn(2, 4, 4, 2, generator=generator), torch.stack([torch.randperm(8) for _ in range(2)]))
    books = CodebookSet((book,), (book,))
    header = CodebookHeader(
        model={"name": "m", "family": "llama", "config": "c", "weights": "w"}, num_layers=1, num_kv_heads=2, head_dim=8,
        num_subspaces=4, nbits=2, scope="head", channels="balanced", metric="euclidean",
        calibration={
            "name": "t", "split": "calibration", "sha256": "0", "tokens": 9, "context": 3, "documents": ("d",),
        },
        samples=9, iterations=1, seed=0, errors=((0.1, 0.2),), versions={"pqkv": "0"},
    )  # fmt: skip
    path = tmp_path / "books.safetensors"
    save_codebooks(path, books, header)
    original = path.read_bytes()
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(original, draw))
        try:
            loaded = load_codebooks(path)
        except CodebookError as error:
            one_line(error)
            refused += 1
        else:
            assert loaded[1] == header
            assert tensors(loaded[0]) == tensors(books)
    assert refused > 0.9 * count


@pytest.mark.parametrize("count", COUNTS)
def test_a_mutated_record_is_refused_or_the_same(tmp_path, count):
    draw = random.Random(count)
    config = {"model": "m", "bits": 4, "context": 512, "mode": "token"}
    record = Record(
        kind="eval", config=config, digest=digest_of(config), env={"python": "3.11"}, git={"commit": "a" * 40}, seed=0,
        status="ok", started_at="2026-01-01T00:00:00+00:00", seconds=1.5,
        metrics={"kld_mean": Metric(value=0.1, low=0.05, high=0.2, unit="nats", n=7)},
        tables={"by_position": [{"start": 0, "end": 128}]}, samples={"nll": [1.0, 2.0]}, notes=["a note"],
    )  # fmt: skip
    path = RecordStore(tmp_path).write(record)
    original = path.read_bytes()
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(original, draw))
        try:
            assert read_record(path) == record
        except RecordError as error:
            one_line(error)
            refused += 1
    assert refused > 0.9 * count


TOML = b"""
model = "reference"
bits = [4, 2]
context = [512, 2048]
mode = ["token", "chunk"]
windows = 8
page-size = 64
residual = 128
control = true
seed = 3
"""
JSON = json.dumps({"model": "reference", "bits": 4, "samples": 4096, "seed": 1, "scope": "head"}).encode()
BENCH = json.dumps({"lengths": [128, 512], "bits": [4, 2], "heads": 8, "kv_heads": 2, "head_dim": 64}).encode()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("name", "original", "kind"),
    [("c.toml", TOML, EvalConfig), ("c.json", JSON, TrainConfig), ("b.json", BENCH, BenchConfig)],
)
def test_a_mutated_configuration_is_refused_or_a_configuration(tmp_path, count, name, original, kind):
    draw = random.Random(count)
    path = tmp_path / name
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(original, draw))
        try:
            config = kind.parse(read_config_file(path), source=name)
        except ConfigError as error:
            one_line(error)
            refused += 1
        else:  # what was taken can be written, named and read again
            assert kind.parse(json.loads(config.model_dump_json())).digest() == config.digest()
    assert refused > 0.3 * count
