"""Figures in prose of what an H100 and an H200 say of today's kernels: codes and recipe pqkv beside exact attention."""

import pytest
from prose import ROOT, numbers, script, text_of

from pqkv.record import load_records
from pqkv.speed.static import GPUS

TEXT, SPEED, README, LOG = map(
    text_of, ("experiments/gpu/README.md", "docs/how-to/speed.md", "README.md", "experiments/LOG.md")
)
RUNS = {"H100": ("NVIDIA H100 80GB HBM3", "13a412d"), "H200": ("NVIDIA H200", "3e16c82")}
LARGE, GROUPED, LONG = (32, 32, 8, 32768), (32, 8, 8, 32768), (32, 8, 1, 131072)


@pytest.fixture(scope="module")
def tables():
    return script("experiments/gpu/tables.py")


@pytest.fixture(scope="module")
def records(tables):
    """By card: records by cell and bits, of product codes alone and of all of recipe pqkv."""
    found = {}
    for card, run in RUNS.items():
        loaded = load_records(tables.FOLDER / tables.CARDS[card])
        assert {(r.env["gpus"][0]["name"], r.git["commit"][:7], r.git["dirty"]) for r in loaded} == {(*run, False)}
        assert len(loaded) == 28
        found[card] = tables.by_recipe(tables.FOLDER / tables.CARDS[card])
        assert found[card][0].keys() == found[card][1].keys()
    return found


@pytest.fixture(scope="module")
def eleven(tables):
    """Of an H100, when a step of product codes was eleven launches."""
    found = tables.by_cell(load_records(tables.FOLDER / "bench"))
    assert {r.git["commit"][:7] for of in found.values() for r in of.values()} == {"3c08c61"}
    return found


def speedups(of):
    return {
        cell: {bits: record.metrics["speedup"].value for bits, record in found.items()} for cell, found in of.items()
    }


@pytest.fixture(scope="module")
def times(records):
    """Speed-ups by card, of product codes and of recipe pqkv."""
    return {card: [speedups(of) for of in both] for card, both in records.items()}


def both(of, digits=2):
    return [round(of[bits], digits) for bits in (4, 2)]


def span(values):
    return [round(pick(values), 2) for pick in (min, max)]


def test_product_codes_where_the_cache_is_large(times):
    (codes, _), (other, _) = times.values()
    assert numbers(TEXT, r"4 bits are ([\d.]+) times and 2 bits ([\d.]+) times as fast at 32,768") == both(codes[LARGE])
    alone = (32, 32, 1, 32768)
    assert numbers(TEXT, r"and ([\d.]+) times at 4 bits of one sequence: .* on an H200 \(([\d.]+)\)") == [
        round(codes[alone][4], 2), round(other[alone][4], 2),
    ]  # fmt: skip
    assert other[alone][4] < 2.09 < codes[alone][4]
    assert numbers(TEXT, r"win there in a batch of 8 \(([\d.]+) and ([\d.]+)\) and at 131,072") == both(codes[GROUPED])
    one, eight = codes[32, 8, 1, 32768], codes[32, 8, 8, 4096]
    assert numbers(TEXT, r"or 4,096 of eight \(([\d.]+) both\)") * 2 == [round(of[2], 2) for of in (one, eight)]
    assert max(one[4], eight[4]) < 1 < min(one[2], eight[2])
    assert min(codes[LONG].values()) > 1 > max(codes[32, 8, 1, 4096].values())
    assert max(other[cell][bits] for cell in ((32, 8, 1, 4096), (32, 8, 1, 32768)) for bits in (4, 2)) < 1
    told = r"So codes are ([\d.]+) and ([\d.]+) times as fast as .*?, and ([\d.]+) and ([\d.]+) on the H100"
    assert numbers(TEXT, told) == [*both(other[LARGE]), *both(codes[LARGE])]


def test_recipe_pqkv_as_a_whole(times):
    (_, recipe), (_, other) = times.values()
    told = r"by ([\d.]+) and ([\d.]+) times in a batch of 8, and with 8 in that batch alone \(([\d.]+) at both"
    assert numbers(TEXT, told) == [*both(recipe[LARGE]), round(recipe[GROUPED][4], 2)]
    assert both(recipe[GROUPED]) == [round(recipe[GROUPED][4], 2)] * 2
    assert [cell for cell, of in recipe.items() if max(of.values()) > 1] == [GROUPED, (32, 32, 1, 32768), LARGE]
    few = [value for cell, of in other.items() for value in of.values() if cell[1] == 8]
    assert max(few) < 1
    assert numbers(TEXT, r"4 bits and 2 bits at ([\d.]+) to ([\d.]+) of its speed") == span(few)
    told = r"only: ([\d.]+) times at 4 bits and ([\d.]+) at 2 in a batch of 8, and ([\d.]+) at 2 bits"
    assert numbers(TEXT, told) == [
        *both(other[LARGE]), round(other[32, 32, 1, 32768][2], 2),
    ]  # fmt: skip


def test_pages_for_readers_say_the_same(times):
    rows = [
        f"| {card} | {cell[1]} | " + " | ".join("{:.2f}, {:.2f}".format(*both(of[cell])) for of in found) + " |"
        for card, found in times.items() for cell in (LARGE, GROUPED)
    ]  # fmt: skip
    assert "\n".join(rows) in (ROOT / "docs/how-to/speed.md").read_text()
    (codes, recipe), (other, other_recipe) = times.values()
    assert numbers(SPEED, r"\(at 2 bits ([\d.]+) times there on an H100\)") == [round(codes[32, 8, 1, 32768][2], 2)]
    assert (
        max(value for of in (recipe, other_recipe) for cell in of if cell[1:3] == (8, 1) for value in of[cell].values())
        < 1
    )
    told = (
        r"at ([\d.]+) times \(4 bits\) and ([\d.]+) times \(2 bits\) .* KV heads at ([\d.]+) and ([\d.]+), and the "
        r"default recipe as a whole there at ([\d.]+); "
        r".* says ([\d.]+) and ([\d.]+), ([\d.]+) and ([\d.]+), and ([\d.]+\d)"
    )
    assert numbers(README, told) == [
        *both(codes[LARGE]), *both(codes[GROUPED]), both(recipe[GROUPED])[0],
        *both(other[LARGE]), *both(other[GROUPED]), both(other_recipe[GROUPED])[0],
    ]  # fmt: skip


def test_times_of_an_h200_beside_those_of_an_h100(records):
    (codes, recipe), (other, other_recipe) = records.values()

    def ratios(name, of, found, every_bits=(4, 2), least=0):
        return [
            of[cell][bits].metrics[name].value / found[cell][bits].metrics[name].value
            for cell in of for bits in every_bits if cell[3] >= least
        ]  # fmt: skip

    exact = ratios("exact_latency_ms", other, codes, (4,), 32768)
    assert numbers(TEXT, r"exact attention takes ([\d.]+) to ([\d.]+) of an H100's time") == span(exact)
    bandwidths = [GPUS[name].hbm_gbs for name in ("h100", "h200")]
    assert numbers(TEXT, r"two memories \(([\d,]+) and ([\d,]+) GB/s, ([\d.]+)\)") == [
        *bandwidths, round(bandwidths[0] / bandwidths[1], 2),
    ]  # fmt: skip
    assert numbers(LOG, r"exact attention has ([\d.]+) times the bandwidth") == [
        round(bandwidths[1] / bandwidths[0], 2)
    ]
    told = r"product codes takes ([\d.]+) to ([\d.]+) of the H100's time, one of recipe pqkv ([\d.]+) to ([\d.]+\d)"
    steps, wholes = ratios("latency_ms", other, codes), ratios("latency_ms", other_recipe, recipe)
    assert numbers(TEXT, told) == [*span(steps), *span(wholes)]


def test_three_launches_in_place_of_eleven(records, times, eleven):
    codes, before = records["H100"][0], speedups(eleven)

    def shares(name, every_bits):
        return [
            codes[cell][bits].metrics[name].value / eleven[cell][bits].metrics[name].value
            for cell in codes for bits in every_bits
        ]  # fmt: skip

    steps, exact = shares("latency_ms", (4, 2)), shares("exact_latency_ms", (4,))
    for text, told in (
        (TEXT, r"take ([\d.]+) to ([\d.]+) of its time, cell by cell \(exact attention ([\d.]+) to ([\d.]+): another"),
        (
            LOG,
            r"take ([\d.]+) to ([\d.]+) of the time of eleven, cell by cell \(exact attention ([\d.]+) to ([\d.]+)\)",
        ),
    ):
        assert numbers(text, told) == [*span(steps), *span(exact)]
    assert next(iter(codes)) == (32, 8, 1, 4096)  # the shortest gains most
    assert min(steps) == min(steps[:2])
    told = (
        r"32,768 tokens ([\d.]+) and ([\d.]+) times where eleven gave ([\d.]+) and ([\d.]+), "
        r"with 32 KV heads ([\d.]+) and ([\d.]+) where they gave ([\d.]+) and ([\d.]+\d)"
    )
    assert numbers(TEXT, told) == [
        value for cell in (GROUPED, LARGE) for of in (times["H100"][0], before) for value in both(of[cell])
    ]  # fmt: skip


def test_what_the_log_says(records, times, eleven):
    (codes, recipe), (other, other_recipe) = times.values()
    before = speedups(eleven)
    told = r"([\d.]+) and ([\d.]+) times \(4 and 2 bits, 32 KV heads.*\) where an H100 said ([\d.]+) and ([\d.]+);"
    assert numbers(LOG, told) == [*both(other[LARGE], 1), *both(before[LARGE], 1)]
    assert numbers(LOG, r"said 2.6 and 3.3; with 8 KV heads ([\d.]+) and ([\d.]+\d)") == both(other[GROUPED])
    few, many = ([v for cell, of in other_recipe.items() if cell[1] == heads for v in of.values()] for heads in (8, 32))
    assert numbers(LOG, r"ten cells \(([\d.]+) to ([\d.]+)\), and wins three of four with 32, by ([\d.]+) at") == [
        *span(few), round(max(many), 2),
    ]  # fmt: skip
    assert (len(few), sum(value > 1 for value in many)) == (10, 3)
    for card, pattern in (("H200", r"a step takes ([\d.]+) to ([\d.]+) times as long with it"),
                          ("H100", r"It takes ([\d.]+) to ([\d.]+) times a step of product codes")):  # fmt: skip
        alone, whole = records[card]
        longer = [
            whole[cell][bits].metrics["latency_ms"].value / alone[cell][bits].metrics["latency_ms"].value
            for cell in alone for bits in (4, 2)
        ]  # fmt: skip
        assert numbers(LOG, pattern) == span(longer)
    told = (
        r"8 KV heads product codes win by ([\d.]+) and ([\d.]+) in a batch of 8 and recipe pqkv by ([\d.]+); "
        r"with 32 by ([\d.]+) and ([\d.]+), and ([\d.]+) and ([\d.]+\d)"
    )
    assert numbers(LOG, told) == [
        *both(codes[GROUPED]),
        both(recipe[GROUPED])[0],
        *both(codes[LARGE]),
        *both(recipe[LARGE]),
    ]


@pytest.mark.parametrize("card", RUNS)
def test_tests_that_passed(tables, card):
    name, commit = RUNS[card]
    head, *lines = (tables.FOLDER / f"tests-{card.lower()}.log").read_text().splitlines()
    assert head.startswith(f"# {name}") and f"commit {commit}" in head
    dots = "".join(line.partition("[")[0].strip() for line in lines)
    assert set(dots) == {"."}  # neither F nor E nor s
    assert lines[-1].endswith("[100%]")
    assert f"({commit}" in TEXT
    assert numbers(TEXT, r"All (\d+) tests of `tests/kernels/cuda` passed") == [len(dots)]
    assert numbers(LOG, rf"\*\*(\d+) tests of the kernels passed on the {card}") == [len(dots)]
