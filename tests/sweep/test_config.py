"""What a sweep's file says: which cells, in which order, with which seeds, and what is wrong with it."""

import itertools

import pytest

from pqkv.codec.catalog import CodecSpec
from pqkv.config import BenchConfig, EvalConfig
from pqkv.errors import ConfigError
from pqkv.lab.config import LabConfig
from pqkv.sweep.commands import COMMANDS
from pqkv.sweep.config import SweepConfig
from pqkv.sweep.examples import example, example_names


def parsed(**values):
    return SweepConfig.parse({"command": "eval", **values}, source="a.toml")


def read(tmp_path, text):
    file = tmp_path / "a.toml"
    file.write_text(text)
    return SweepConfig.read(file)


def test_linked_settings_vary_together_and_the_others_in_all_combinations():
    config = parsed(zip={"context": [256, 512], "windows": [8, 4]}, product={"bits": [4, 3], "seed": [0, 1]})
    expected = [
        {"context": context, "windows": windows, "bits": bits, "seed": seed}
        for (context, windows), bits, seed in itertools.product([(256, 8), (512, 4)], [4, 3], [0, 1])
    ]
    assert list(config.combinations()) == expected
    cells = list(config.cells())
    assert [cell.varied for cell in cells] == expected
    assert len({cell.digest for cell in cells}) == config.count() == 8
    for cell, wanted in zip(cells, expected, strict=True):
        found = COMMANDS["eval"].configuration(cell.settings)
        same = {name: (value,) if name in ("context", "bits") else value for name, value in wanted.items()}
        assert found == EvalConfig(**same)


def test_several_zips_multiply():
    config = parsed(zip=[{"context": [256, 512], "windows": [8, 4]}, {"bits": [4, 2], "recipe": ["pqkv", "product"]}])
    assert config.count() == 4


def test_a_cell_is_the_same_in_whatever_file_it_stands():
    long = parsed(fixed={"model": "reference", "windows": 8}, product={"context": [256, 512], "bits": [4.0]})
    short = parsed(product={"bits": [2, 4, 4], "context": [512]})
    assert short.count() == 2
    assert {cell.digest for cell in long.cells()} & {cell.digest for cell in short.cells()} == {
        next(c.digest for c in short.cells() if c.varied["bits"] == 4)
    }


def test_what_is_skipped_is_left_out():
    config = parsed(product={"context": [256, 512], "bits": [4, 2]}, skip=[{"context": 512, "bits": 2}])
    assert {"context": 512, "bits": 2} not in list(config.combinations())
    assert config.count() == 3


def test_runs_repeat_cells_under_names_of_their_own():
    config = parsed(product={"context": [256]})
    first, second = config.cells(2)
    assert first.settings == second.settings
    assert (first.run, second.run) == (1, 2)
    assert first.digest != second.digest
    assert second.label == "context 256, run 2"


def test_the_seed_rule_decides_every_cells_seed():
    def seeds(rule, base=0, runs=2, **product):
        config = parsed(product={"context": [256, 512], **product}, seed={"rule": rule, "base": base})
        return [cell.settings.get("seed", 0) for cell in config.cells(runs)]

    assert seeds("same", 7) == [7, 7, 7, 7]
    assert seeds("run", 7) == [7, 7, 8, 8]
    drawn = seeds("cell")
    assert drawn[:2] == drawn[2:]
    assert len(set(drawn)) == 2
    assert seeds("cell", 1)[0] != drawn[0]
    assert seeds("cell", bits=[4, 2])[::2] == drawn  # no other cell changes a cell's seed: 4 bits are the default


def test_each_command_has_its_own_settings():
    bench = parsed(command="bench", fixed={"model": "llama-2-7b"}, product={"lengths": [128]})
    cell = next(bench.cells())
    assert COMMANDS["bench"].configuration(cell.settings) == BenchConfig(
        lengths=(128,), model="llama-2-7b", heads=32, kv_heads=32, head_dim=128
    )
    whole = parsed(command="end-to-end", product={"lengths": [128]})
    config = COMMANDS["end-to-end"].configuration(next(whole.cells()).settings)
    assert (config.end_to_end, config.repeats, whole.in_own_process) == (True, 3, True)
    lab = parsed(command="lab", fixed={"methods": {"a": "int:bits=4"}}, product={"texts": ["stdlib"], "exact": ["4/0"]})
    config = COMMANDS["lab"].configuration(next(lab.cells()).settings)
    assert config == LabConfig(methods={"a": "int:bits=4"}, texts=("stdlib",), exact=("4/0",))
    assert not lab.in_own_process


@pytest.mark.parametrize(
    "text, said",
    [
        ("command = 'train'", "command: Input should be 'eval', 'lab', 'bench' or 'end-to-end'"),
        ("command = 'eval'\nproducts = {}", "unknown key 'products'; did you mean 'product'?"),
        ("", "command: is required and not given"),
        ("command = 'eval'\n[limits]\ntime = 600", "limits.time: Input should be a valid string, not 600"),
        ("command = 'eval'\n[fixed]\nbitz = 4", "unknown key 'bitz'; did you mean 'bits'? known keys: allow_c"),
        ("command = 'eval'\n[product]\nbits = 4", "bits takes a list of what it varies over"),
        ("command = 'eval'\n[product]\nbits = []", "bits varies over nothing"),
        ("command = 'eval'\n[zip]\nbits = [4, 2]\ncontext = [256]", "bits has 2, context has 1 values"),
        ("command = 'eval'\n[fixed]\nbits = 4\n[product]\nbits = [4]", "bits is given twice"),
        ("command = 'eval'\n[product]\ncontext = [1]", "eval cell of context 1: context: every context must be at"),
        ("command = 'eval'\n[[skip]]\nmode = 'token'", "skip names mode, which the sweep neither fixes nor varies"),
        ("command = 'eval'\n[fixed]\nbits = 4\n[[skip]]\nbits = 4", "every combination is skipped"),
        ("command = 'eval'\n[limits]\ntime = 'soon'", "limits.time takes 45s, 90min or 2h, not 'soon'"),
        ("command = 'eval'\n[limits]\nmemory = 'much'", "limits.memory takes 24GiB"),
        ("command = 'eval'\n[fixed]\nseed = 1\n[seed]\nrule = 'run'", "seed is given, and the seed rule 'run'"),
        ("command = 'end-to-end'\n[fixed]\nheads = 4", "command 'end-to-end' has no setting heads"),
        ("command = 'eval", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", example_names())
def test_examples_are_sweeps(tmp_path, name):
    config = read(tmp_path, example(name))
    cells = list(config.cells())
    assert len(cells) > 8
    if name == "length":
        assert (min(c.context for c in cells), max(c.context for c in cells)) == (128, 32768)
    for cell in cells:
        for text in cell.settings.get("codec", []):
            CodecSpec.parse(text)


def test_there_is_an_example_of_each_kind():
    assert example_names() == ["bench", "length", "recipe"]
    with pytest.raises(ConfigError, match="there is no example 'x'; there are bench, length, recipe"):
        example("x")
