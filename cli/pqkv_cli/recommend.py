"""`pqkv recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pqkv_cli.flags import option
from pqkv_cli.options import Dtype, Model
from pqkv_cli.output import console, echo

if TYPE_CHECKING:
    from pqkv.lab.recommend import Recipe, Wanted
    from pqkv.lm import LanguageModel
    from pqkv.record import Metric, Record

_ASK, _WHERE = "What is asked", "Where records are"


def recommend(
    model: Model = None,
    max_ppl: Annotated[str | None, option("Perplexity may grow by so much, as 1% or 0.01.", _ASK, False)] = None,
    max_kld: Annotated[float | None, option("Mean KL divergence in nats, at most.", _ASK, False)] = None,
    bits: Annotated[float | None, option("Bits an element, at most.", _ASK, False)] = None,
    memory: Annotated[str | None, option("What it has to fit into, weights included, as 24GiB.", _ASK, False)] = None,
    dtype: Dtype = None,
    results: Annotated[list[Path] | None, option("Folders of records; again for more.", _WHERE, "results")] = None,
    exact: Annotated[
        str, option("Exact tokens they were measured with, SINKS/NEWEST: 4/0 is all-coded but 4.", _WHERE, "4/0")
    ] = "4/0",
    lab: Annotated[
        Path | None, option("A lab file to measure first, where its records are missing.", _WHERE, False)
    ] = None,
    yes: Annotated[bool, option("Measure without asking.", _WHERE, False, "--yes")] = False,
) -> None:
    """Name the smallest recipe that was measured and does what is asked, with the interval that says so.

    It counts as doing it if the upper ends of the intervals are within the bound, on every text and context measured.
    """
    from pqkv.amounts import bytes_of, share_of
    from pqkv.lab.recommend import Wanted, recipes, recommended
    from pqkv.lm import load_model
    from pqkv.record import load_records

    wanted = Wanted(None if max_ppl is None else share_of(max_ppl, "--max-ppl"), max_kld, bits)
    room_for = None if memory is None else bytes_of(memory, "--memory")
    lm = load_model(model or "reference", dtype or "float32")
    folders = results or [Path("results")]
    if lab is not None:
        _measure_first(lab, folders[0], lm, yes=yes)
    found = recipes(load_records([f for f in folders if f.exists()]), lm.fingerprint, _mode(exact))
    best = recommended(found, wanted)
    _print(best, found, wanted, lm, room_for)


def _print(best: Recipe | None, found: list[Recipe], wanted: Wanted, lm: LanguageModel, memory: int | None) -> None:
    from pqkv.errors import PqkvError
    from pqkv.lab.recommend import measured_everywhere, recommended, why_nothing
    from pqkv_cli.table import print_lines, print_table

    out = console()
    if not found:
        raise PqkvError(
            f"nothing was measured of {lm.name} with these exact tokens; measure with pqkv lab FILE -o results, or "
            "give --lab FILE"
        )
    if best is None:
        raise PqkvError(f"{lm.name}: {why_nothing(found, wanted)}")
    kind = "smallest" if wanted.max_ppl is not None or wanted.max_kld is not None else "one that loses least"
    compared, places = measured_everywhere(found), len(best.places)
    among = f"of {len(compared)} measured in all {places} places" if places > 1 else f"of {len(compared)} measured"
    said = f"{best.name}: {best.code_bits:.4g} bits an element, the {kind} {among} with {wanted}"
    print_lines(out, said)
    print_table(
        out,
        ("text", "context", "windows", "PPL", "KLD, nats", "top-1"),
        [_measured(record) for record in best.records],
        words=("text",),
        title=f"measured on {lm.name}",
        caption="in brackets: 95% bootstrap over windows",
    )
    columns = ("tokens", "cache", "16 bits", "smaller", "quality")
    print_table(out, columns, _savings(best), title="what it saves", words=("quality",))
    if memory is not None:
        _print_room(best, lm, memory)
    coded = best.records[0].config.get("codec")
    codec = f"--codec '{best.name}'" if coded else "--codebooks FILE"
    if best.looks_below:
        print_lines(
            out, "it predicts each layer from the one underneath: attention would have to restore every key first"
        )
        lookable = recommended([recipe for recipe in found if not recipe.looks_below], wanted)
        if lookable is not None:
            said = f"the {kind} that could be looked up: {lookable.name} at {lookable.code_bits:.4g} bits"
            print_lines(out, f"{said}, {_loss(lookable)}")
    if coded:
        print_lines(out, _serving(lm, best.name))
    print_lines(out, f"learn and use it: pqkv eval --model {lm.name} {codec}")


def _serving(lm: LanguageModel, codec: str) -> str:
    """How a codec gets into pages, or why it does not."""
    from pqkv.codec.catalog import CodecSpec
    from pqkv.codec.served import served_options
    from pqkv.errors import ConfigError

    try:
        served_options(CodecSpec.parse(codec))
    except ConfigError as error:
        return f"measured, not served: {error}; pqkv train-codebooks makes the nearest that is"
    return f"serve it: pqkv train-codebooks --model {lm.name} --codec '{codec}' -o FILE"


def _measured(record: Record) -> list[str]:
    m, c = record.metrics, record.config
    return [
        f"{c['data']}/{c['split']}",
        str(c["context"]),
        str(c["windows"]),
        f"{_within(m['perplexity_ratio'], 100, 1, '+.2f')}%",
        _within(m["kld_mean"], 1, 0, ".3g"),
        f"{m['agreement_at_1'].value:.1%}",
    ]


def _within(metric: Metric, scale: float, less: float, spec: str) -> str:
    """A figure with its interval, `scale` times what it is over `less`."""
    figure, *interval = (
        None if x is None else format(scale * (x - less), spec) for x in (metric.value, metric.low, metric.high)
    )
    return str(figure) if None in interval else f"{figure} [{', '.join(map(str, interval))}]"


def _savings(best: Recipe) -> list[list[str]]:
    from pqkv.lab.recommend import STATED, exact_bytes

    rows = []
    for tokens in STATED:
        coded, plain = best.bytes_at(tokens), exact_bytes(best.records[0], tokens)
        known = "measured" if tokens <= best.longest else f"not measured past {best.longest:,} tokens"
        rows.append([f"{tokens:,}", f"{coded / 1e6:.1f} MB", f"{plain / 1e6:.1f} MB", f"{plain / coded:.2f}x", known])
    return rows


def _print_room(best: Recipe, lm: LanguageModel, memory: int) -> None:
    from pqkv.lab.recommend import room
    from pqkv_cli.table import print_lines

    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    held = room(best, memory, weights)
    past = f" (the model has {lm.max_positions:,} positions)" if held.longest_context > lm.max_positions else ""
    batches = ", ".join(f"{batch:,} of {context:,}" for context, batch in held.largest_batch.items())
    print_lines(
        console(),
        f"{memory / 2**30:.3g} GiB with {weights / 2**30:.2f} GiB of weights hold one sequence of "
        f"{held.longest_context:,} tokens{past}, or {batches}",
    )


def _loss(recipe: Recipe) -> str:
    ratio, kld = recipe.worst("perplexity_ratio"), recipe.worst("kld_mean")
    return f"perplexity {100 * ((ratio.value or 1) - 1):+.2f}% and a KLD of {kld.value or 0:.3g} nats"


def _measure_first(file: Path, output: Path, lm: LanguageModel, *, yes: bool) -> None:
    """Run a lab file whose records are not all there, after asking."""
    from pqkv.config import read_config_file
    from pqkv.errors import ConfigError
    from pqkv.lab.config import LabConfig
    from pqkv.lab.run import run_lab
    from pqkv.lab.time import expected_seconds
    from pqkv.record import RecordStore
    from pqkv_cli.progress import ProgressBar

    config = LabConfig.parse(read_config_file(file), source=file.name)
    seconds = expected_seconds(config, lm)
    if not yes:
        import typer

        count = len(config.all_methods())
        echo(f"measuring {count} methods takes about {seconds / 60:.0f} minutes, less where records are", stderr=True)
        if not typer.confirm("measure now?", err=True):
            raise ConfigError("not measured; give --yes to measure without asking, or leave --lab out")
    with ProgressBar() as bar:
        for _ in run_lab(config, RecordStore(output), report=bar.show):
            pass


def _mode(exact: str) -> str:
    from pqkv.errors import ConfigError
    from pqkv.lab.config import sinks_and_newest

    try:
        sinks, newest = sinks_and_newest(exact)
    except ValueError as error:
        raise ConfigError(f"--exact: {error}") from error
    if newest:
        return "exact-schedule"
    return f"all-coded, {sinks} sink{'' if sinks == 1 else 's'}" if sinks else "all-coded"
