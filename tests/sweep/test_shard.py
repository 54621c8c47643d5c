"""Which cells a shard has, as it is said on the command line and by SLURM."""

import itertools

import pytest

from pqkv.errors import ConfigError
from pqkv.sweep.config import SweepConfig
from pqkv.sweep.shard import Shard

SWEEP = SweepConfig.parse({"command": "eval", "product": {"context": list(range(200, 211)), "bits": [4, 2]}})


@pytest.mark.parametrize("count", [1, 3, 4, 30])
def test_shards_have_every_cell_once(count):
    digests = [cell.digest for cell in SWEEP.cells()]
    shards = [[cell.digest for cell in Shard(i, count).of(SWEEP.cells())] for i in range(1, count + 1)]
    assert sorted(itertools.chain(*shards)) == sorted(digests)
    assert [Shard(i, count).size(22) for i in range(1, count + 1)] == [len(shard) for shard in shards]


def test_a_shard_is_said_as_one_of_several():
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(ConfigError, match="--shard takes i/n"):
            Shard.parse(text)


@pytest.mark.parametrize(
    "variables, shard",
    [
        ({}, (1, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (3, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "9", "SLURM_STEP_NUM_TASKS": "4"}, (3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, (6, 8)),
        ({"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, (8, 8)),
        (
            {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10",
             "SLURM_ARRAY_TASK_STEP": "2"}, (3, 3),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "3"},
            (5, 6),
        ),
    ],
)  # fmt: skip
def test_slurms_variables_say_the_shard(variables, shard):
    found = Shard.of_environment(variables)
    assert (found.index, found.count) == shard
    assert bool(found.said_by) == (found.count > 1)


def test_variables_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="name task 5 of 4"):
        Shard.of_environment({"SLURM_PROCID": "4", "SLURM_NTASKS": "4"})
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_COUNT is ''"):
        Shard.of_environment({"SLURM_ARRAY_TASK_ID": "4"})
