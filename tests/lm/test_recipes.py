"""What `train-codebooks` makes of a configuration: recipes, bits by layer, codecs that are served."""

import pytest
from models import write_corpus

from pqkv.config import TrainConfig
from pqkv.errors import ConfigError
from pqkv.lm import load_model
from pqkv.lm.train import recipe_options, train

SMALL = {"num_subspaces": 4, "nbits": 4, "calibration_tokens": 400, "context": 100, "samples": 300, "iterations": 1}


def test_the_default_is_what_the_lab_found_best_of_what_is_served():
    options = recipe_options(TrainConfig(bits=3))
    keys, values = options["keys"], options["values"]
    assert (keys.bits, keys.mean, keys.metric, keys.transform, keys.centroids, keys.gain) == (
        3, "turning", "full", "klt", "int8", False,
    )  # fmt: skip
    assert (values.bits, values.gain, values.transform, values.scope, values.mean) == (
        3, True, "hadamard", "universal", "none",
    )  # fmt: skip
    assert recipe_options(TrainConfig(), turning=False)["keys"].mean == "constant"


def test_million_is_what_its_report_says():
    own = TrainConfig(recipe="million")
    assert (own.scope, own.channels, own.metric, own.init, own.iterations) == (
        "global", "adjacent", "euclidean", "random", 25,
    )  # fmt: skip
    assert TrainConfig(recipe="million", scope="head").scope == "head"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": "adjacent"}, "channels is an option of recipe product"),
        ({"init": "random"}, "init is an option of recipe product"),
        ({"scope": "global"}, "scope global is of recipe product"),
        ({"recipe": "product", "key_layer_bits": (4, 4)}, "of recipe pqkv"),
        ({"recipe": "product", "codec": "composed"}, "of recipe pqkv"),
        ({"codec": "composed", "bits": 4}, "a codec says bits itself"),
        ({"leave_out": 1024}, "leave_out 1024 leaves nothing"),
        ({"recipe": "best"}, "recipe"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.parse(values)


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    lm = load_model(str(tiny_folder))
    text = write_corpus(tmp_path_factory.mktemp("text") / "corpus", [f"{i}.txt" for i in range(4)])
    return lambda **options: train(lm, TrainConfig(data=str(text), **{**SMALL, **options}))


def test_layers_have_the_bits_that_they_were_dealt(trained):
    more = {"num_subspaces": None, "nbits": None, "samples": 300}
    books, header = trained(**more, bits=2, key_layer_bits=(2, 4), calibration_tokens=600)
    assert [book.code_bits for book in books.keys] == [2, 4]
    assert [book.code_bits for book in books.values] == [2.5, 2.5]  # a byte of gain for 16 elements
    assert header.layer_shape("keys", 1) == (8, 8)
    with pytest.raises(ConfigError, match=r"3 bits of values by layer, and .* has 2 to code"):
        trained(**more, bits=2, value_layer_bits=(2, 2, 4), calibration_tokens=600)


def test_a_codec_that_is_served_is_trained_and_others_are_refused_by_name(trained, monkeypatch):
    for name in ("num_subspaces", "nbits", "iterations"):  # which it says itself
        monkeypatch.delitem(SMALL, name)
    part = "num_subspaces=4,nbits=4,iterations=1"
    books, header = trained(codec=f"composed:{part},mean=constant/composed:{part},gain=true")
    assert (header.keys.mean, header.values.gain) == ("constant", True)
    assert books.keys[0].mean is not None
    assert books.keys[0].turning is None
    for codec, message in (("kivi", "keys: kivi is measured and not served"), ("composed:rope=pre", "keys: rope=pre")):
        with pytest.raises(ConfigError, match=message):
            trained(codec=codec)


def test_sinks_are_left_out_unless_they_are_asked_for(trained):
    assert trained(leave_out=0)[1].calibration.leave_out == 0
    assert trained()[1].calibration.leave_out == 4
    assert trained(recipe="product")[1].version == 3
