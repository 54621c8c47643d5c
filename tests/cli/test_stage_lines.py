"""Progress without a terminal, on a clock that the test moves."""

import pytest
from pqkv_cli.stage_lines import StageLines, duration


class Log:
    """Lines with a clock at hand."""

    def __init__(self):
        self.lines, self.now = [], 100.0
        self.stages = StageLines(self.lines.append, lambda: self.now)

    def after(self, seconds, *shown):
        self.now += seconds
        self.stages.show(*shown) if shown else self.stages.tick()
        return self.lines[-1]


@pytest.fixture
def log():
    return Log()


def test_a_stage_is_named_as_it_begins_and_told_every_five_seconds(log):
    assert log.after(0, "capture", 0, 16) == "capture"
    for done in range(1, 9):
        log.after(1, "capture", done, 16)
    assert log.lines == ["capture", "capture: 5 of 16 (1/s, 11 s left)"]
    assert log.after(4, "capture", 12, 16) == "capture: 12 of 16 (1/s, 4 s left)"


def test_a_stage_that_is_soon_over_is_its_name_and_nothing_else(log):
    log.after(0, "tokenize", 0, 1)
    log.after(4.9, "capture", 0, 16)
    log.after(1, "train keys", 0, 6)
    log.stages.close()
    assert log.lines == ["tokenize", "capture", "train keys"]


def test_a_stage_that_took_long_says_how_long(log):
    log.after(0, "capture", 0, 2)
    log.after(1, "capture", 1, 2)
    log.after(2, "capture", 2, 2)
    log.after(9, "train keys", 0, 6)
    assert log.lines[-2:] == ["capture: took 12 s", "train keys"]


def test_a_stage_that_failed_is_not_said_to_be_over(log):
    log.after(0, "capture", 0, 2)
    log.now += 60
    log.stages.close(finished=False)
    assert log.lines == ["capture"]


def test_nothing_is_estimated_before_a_unit_is_done(log):
    log.after(0, "capture", 0, 16)
    assert log.after(5, "capture", 0, 16) == "capture: 0 of 16 (5 s so far)"
    assert log.after(30) == "capture: 0 of 16 (35 s so far)"
    assert log.after(5, "capture", 1, 16) == "capture: 1 of 16 (40 s each, 10 min 0 s left)"


def test_units_of_a_stage_that_begins_with_some_done_took_no_time_yet(log):
    log.after(0, "train keys", 1, 6)
    assert log.after(6, "train keys", 1, 6) == "train keys: 1 of 6 (6 s so far)"
    assert log.after(6, "train keys", 2, 6) == "train keys: 2 of 6 (12 s each, 48 s left)"


def test_silence_is_broken_and_a_unit_that_hangs_moves_the_end_away(log):
    log.after(0, "4 bits", 0, 3)
    log.after(10, "4 bits", 1, 3)
    assert log.after(6) == "4 bits: 1 of 3 (10 s each, 14 s left)"
    assert log.after(54) == "4 bits: 1 of 3 (60 s each, 60 s left)"


def test_units_that_come_in_batches_are_waited_for_as_batches(log):
    log.after(0, "cell", 0, 49152)
    log.after(8, "cell", 4096, 49152)
    assert log.after(5) == "cell: 4096 of 49152 (512/s, 83 s left)"
    assert log.after(11) == "cell: 4096 of 49152 (256/s, 2 min 40 s left)"


def test_a_stage_of_one_unit_tells_its_time_only(log):
    log.after(0, "load model", 0, 1)
    assert log.after(7) == "load model: 7 s so far"
    log.after(0, "load model", 1, 1)
    assert log.after(7) == "load model: 14 s so far"


def test_all_done_is_not_a_second_before_the_end(log):
    log.after(0, "train keys", 0, 2)
    log.after(1, "train keys", 1, 2)
    log.after(1, "train keys", 2, 2)
    assert log.after(4) == "train keys: 2 of 2 (6 s so far)"


def test_cells_that_are_stages_of_their_own_share_the_pace_of_their_grid(log):
    log.after(0, "4 bits, 512 tokens", 0, 4)
    log.after(4, "2 bits, 512 tokens", 1, 4)
    log.after(4, "4 bits, 1024 tokens", 2, 4)
    assert log.after(5) == "4 bits, 1024 tokens: 2 of 4 (0.2/s, 5 s left)"


def test_cells_that_were_there_already_do_not_hurry_those_that_are_measured(log):
    for number in range(10):
        log.after(0.001, f"cell {number}", number, 14)
    log.after(0.001, "cell 10", 10, 14)
    log.after(40, "cell 11", 11, 14)
    assert log.after(5) == "cell 11: 11 of 14 (40 s each, 115 s left)"


def test_a_slow_start_is_forgotten(log):
    log.after(0, "capture", 0, 100)
    log.after(60, "capture", 1, 100)  # compiles first
    for done in range(2, 42):
        last = log.after(1, "capture", done, 100)
    assert last.startswith("capture: 41 of 100 (1/s, ")
    assert last.endswith("59 s left)")


def test_hundreds_of_thousands_of_calls_print_a_handful_of_lines(log):
    for done in range(200_000):
        log.after(0.0001, "windows", done, 200_000)
    assert len(log.lines) == 4
    assert log.lines[1].startswith("windows: 50000 of 200000 (10,000/s, 1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (0.2, "1 s"), (118.5, "119 s"), (119.5, "2 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_read_as_one_says_them(seconds, text):
    assert duration(seconds) == text
