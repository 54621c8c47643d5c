"""Commands of experiments/bench find the records in results/bench: a new option must not rename what was measured."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from pqkv_cli import records as printing
from pqkv_cli.main import main

from pqkv.record import RecordStore, load_records
from pqkv.speed import bench as module

ROOT = Path(__file__).parents[2]
COMMANDS = re.findall(
    r"^    (pqkv bench --lengths .* -o results/bench)$", (ROOT / "experiments/bench/README.md").read_text(), re.M
)


def test_the_commands_are_there():
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_cell_of_a_command_is_found(command, monkeypatch, capsys):
    (machine,) = {record.config["machine"] for record in load_records(ROOT / "results" / "bench")}
    found = []

    def measure(config, cell, *rest):
        raise AssertionError(f"{cell.label} has no record")

    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "machine_name", lambda env: machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.setattr(RecordStore, "check_writable", lambda self: None)
    monkeypatch.setattr(RecordStore, "write", lambda self, record: pytest.fail("a record was written"))
    monkeypatch.setattr(printing, "print_records", lambda records, *rest: None)
    gather = printing.gather

    def kept(*arguments):
        found.extend(gather(*arguments))
        return found

    from pqkv_cli import bench as command_module

    monkeypatch.setattr(command_module, "gather", kept)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], "--threads", "2"])
    assert ended.value.code == 0
    capsys.readouterr()
    values = shlex.split(command)
    cells = [len(values[values.index(flag) + 1].split(",")) for flag in ("--lengths", "--bits")]
    assert len(found) == cells[0] * cells[1]
