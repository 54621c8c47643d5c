"""What is recommended was measured, is the smallest that does what is asked, and says where nobody looked."""

import pytest
from made_records import HEADS, LAYERS, D, record

from pqkv.errors import ConfigError
from pqkv.lab.recommend import Wanted, exact_bytes, recipes, recommended, room, why_nothing

MEASURED = [
    record(2, 0.2, 0.2), record(3, 0.03, 0.05), record(4, 0.01, 0.01), record(8, 0.001, 0.0001),
    record(3, 0.028, 0.04, context=4096), record(4, 0.012, 0.012, context=4096), record(2, 0.3, 0.3, context=4096),
    record(8, 0.001, 0.0001, context=4096),
]  # fmt: skip
MODE = "all-coded, 4 sinks"


def best(wanted, records=MEASURED, mode=MODE):
    return recommended(recipes(records, "m", mode), wanted)


@pytest.mark.parametrize(
    ("wanted", "bits"),
    [
        (Wanted(max_ppl=0.5), 2), (Wanted(max_ppl=0.034), 3), (Wanted(max_ppl=0.032), 4), (Wanted(max_kld=0.0133), 4),
        (Wanted(max_kld=0.0131), 8), (Wanted(bits=4.06), 4), (Wanted(max_ppl=0.5, bits=3.5), 2),
        (Wanted(max_kld=1e-6), None),
        (Wanted(bits=1), None),
    ],
)  # fmt: skip
def test_the_upper_end_of_every_interval_decides(wanted, bits):
    found = best(wanted)
    assert (None if found is None else found.code_bits) == bits


def test_what_was_measured_in_fewer_places_is_not_taken_for_better():
    lucky = record(2, 0.0001, 0.0001, codec="kivi")
    assert best(Wanted(max_ppl=0.034), [*MEASURED, lucky]).code_bits == 3


def test_where_nothing_does_it_is_said_what_comes_nearest_and_what_does_elsewhere():
    """Never that nothing has 1% beside one that has: that one was measured in fewer places."""
    found = recipes([*MEASURED, record(6, 0.0, 0.0, codec="kivi")], "m", MODE)
    assert recommended(found, Wanted(max_kld=1e-6)) is None
    said = why_nothing(found, Wanted(max_kld=1e-6))
    assert "in all 2 places (text and context) has KLD within 1e-06 nats; of 4 such recipes int:bits=8 loses" in said
    assert "kivi:bits=6 does at 6 bits, and was measured in 1 of them" in said
    assert "does at" not in why_nothing(recipes(MEASURED, "m", MODE), Wanted(max_kld=1e-6))


def test_a_place_that_was_measured_twice_is_one_place():
    twice = [record(2, 0.0001, 0.0001, codec="kivi", data="b.txt", windows=windows) for windows in (4, 8, 16)]
    assert best(Wanted(max_ppl=0.034), [*MEASURED, *twice]).code_bits == 3


def test_of_as_many_places_those_with_more_windows_decide():
    one = [record(bits, 0.01, 0.01, windows=32) for bits in (3, 4)]
    lucky = record(2, 0.0001, 0.0001, codec="kivi", data="b.txt", windows=8)
    assert best(Wanted(max_ppl=0.034), [lucky, *one]).code_bits == 3


def test_codes_that_look_below_say_so():
    found = {recipe.name: recipe.looks_below for recipe in recipes(
        [record(4, 0.01, 0.01, codec=codec) for codec in ("aqua", "composed")], "m", MODE)}  # fmt: skip
    assert {name.partition(":")[0]: looks for name, looks in found.items()} == {"aqua": True, "composed": False}


def test_other_models_modes_and_failures_do_not_count():
    foreign = [
        record(2, 0.0, 0.0, model="other"),
        record(2, 0.0, 0.0, sinks=0),
        record(2, 0.0, 0.0, mode="token", sinks=0),
    ]
    assert best(Wanted(max_ppl=0.034), [*MEASURED, *foreign]).code_bits == 3
    assert best(Wanted(max_ppl=0.034), foreign) is None


def test_bytes_are_the_line_through_what_records_state():
    found = best(Wanted(bits=4))
    assert found.bytes_at(0) == pytest.approx(5000)
    assert found.bytes_at(2048) == pytest.approx(5000 + 2048 * 64)
    assert exact_bytes(found.records[0], 1000) == 1000 * 2 * LAYERS * HEADS * D * 2
    assert found.longest == 4096


def test_room_is_what_memory_holds_beside_the_weights():
    found = best(Wanted(bits=4))
    held = room(found, memory=1_000_000, weights=400_000, contexts=(1000, 100_000))
    assert held.longest_context == (600_000 - 5000) // 64
    assert held.largest_batch == {1000: 600_000 // (5000 + 64_000), 100_000: 0}
    with pytest.raises(ConfigError, match="the weights take"):
        room(found, memory=400_000, weights=400_000)


def test_something_has_to_be_asked():
    with pytest.raises(ConfigError, match="give --max-ppl"):
        Wanted()
