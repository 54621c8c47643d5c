"""The file of settings, and how the work of training is bounded."""

from pathlib import Path

import pytest
from models import tiny_lm

from pqkv.errors import ConfigError
from pqkv.record import RecordStore
from pqkv.reproduce import experiment
from pqkv.reproduce.million.lab import MILLION, OURS, Lab
from pqkv.reproduce.million.settings import Settings
from pqkv.reproduce.run import Request, settings_of

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("quick", [False, True])
def test_the_file_of_settings_is_one_and_covers_the_bits_of_the_claim(quick):
    settings = settings_of(experiment("million"), EXPERIMENTS, quick=quick)
    bits = {M * nbits / 64 for M, nbits in settings.shapes}
    assert bits >= ({2, 4} if quick else {2, 2.5, 3, 4, 5, 6})
    assert all(settings.samples >= 2**nbits for _, nbits in (*settings.shapes, *settings.opq_shapes))
    assert {64, 128} <= set(settings.page_sizes) & set(settings.residuals)  # what the claim on flushes compares
    assert settings.prompt >= 4 + max(settings.residuals)  # past the first flush
    assert settings.decoded % max(settings.page_sizes) == 0  # else the last page would be counted in part


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="unknown key 'pages'"):
        Settings.parse({"pages": 3}, source="experiment.toml")
    with pytest.raises(ConfigError, match="nbits from 1 to 12"):
        Settings.parse({"shapes": [[8, 13]]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memory_models": ["llama-9"]}, "memory_models: no shape is called 'llama-9'; known: llama-2-7b"),
        ({"ragged": [300, 200]}, r"ragged: \[shortest, longest\], but 300 is more than 200"),
        ({"ragged": [0, 200]}, "ragged: 0: must be at least 1"),
        ({"pool_pages": [100, 0]}, "pool_pages: 0: must be at least 1"),
        ({"lengths": [0]}, "lengths: 0: must be at least 1"),
        ({"residuals": [-1]}, "residuals: -1: must be at least 1"),
        ({"contexts": [1]}, "contexts: 1: a context has at least 2 tokens"),
        ({"opq_contexts": [1]}, "opq_contexts: 1: a context has at least 2 tokens"),
        ({"page_sizes": [0]}, "page_sizes: 0: a page holds 1 to 4096 tokens"),
        ({"page_sizes": [8192]}, "page_sizes: 8192: a page holds 1 to 4096 tokens"),
        ({"page_sizes": [256], "residuals": [128]}, "residuals: none of .128. holds a page"),
        ({"page_shape": [32, 13]}, "page_shape: a shape is"),
        *(
            ({key: []}, f"{key}: at least one is needed")
            for key in (
                "contexts", "shapes", "opq_shapes", "opq_contexts", "memory_shapes", "lengths", "page_sizes",
                "residuals", "pool_pages",
            )
        ),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_clear_line(values, message):
    with pytest.raises(ConfigError, match=f"^experiment.toml: {message}") as refused:
        Settings.parse(values, source="experiment.toml")
    assert "\n" not in str(refused.value)


def test_a_page_larger_than_a_residual_is_left_out_where_another_fits():
    assert Settings.parse({"page_sizes": [64, 256], "residuals": [64]}).page_sizes == (64, 256)


def test_what_a_setting_would_make_of_the_codebooks_is_refused_as_a_setting(tmp_path):
    made = lab(tmp_path, shapes=((8, 4),))
    with pytest.raises(ConfigError, match="million, training of ours: nbits"):
        made.training(OURS, (8, 13))
    with pytest.raises(ConfigError, match="million, part a: page_size"):
        list(made.evaluated("a", ["x"], "exact-schedule", texts=("x",), contexts=(512,), windows=1, page_size=0))


def lab(tmp_path, **settings):
    made = Lab(Settings(**settings), Request(RecordStore(tmp_path)))
    made.__dict__["lm"] = tiny_lm()  # 3 layers of 2 KV heads
    return made


def distances(training, books):
    return books * training.num_subspaces * training.samples * 2**training.nbits * training.iterations


@pytest.mark.parametrize(("recipe", "books"), [(OURS, 12), (MILLION, 2)])
def test_wide_codes_get_fewer_iterations_never_fewer_samples(tmp_path, recipe, books):
    budget = 1e10
    made = lab(tmp_path, distances=budget, samples=5000)
    seen = []
    for nbits in range(4, 13):
        training = made.training(recipe, (8, nbits))
        seen.append(training.iterations)
        assert training.samples == 5000
        if training.iterations > 5:
            assert distances(training, books) <= budget
        if training.iterations < 25:
            longer = training.model_copy(update={"iterations": training.iterations + 1})
            assert distances(longer, books) > budget
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == 25
    assert seen[-1] == {OURS: 5, MILLION: 25}[recipe]


def test_quick_work_stays_quick(tmp_path):
    assert lab(tmp_path, iterations=3, distances=1.0).training(OURS, (8, 8)).iterations == 3
