"""`pqkv lab`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pqkv_cli.options import Force, Format, RecordFolder
from pqkv_cli.records import RecordFormat, gather, print_records, raise_if_failed

if TYPE_CHECKING:
    from pqkv.record import Record, RecordStore
    from pqkv_cli.progress import ProgressBar


def _file() -> object:
    import typer

    return typer.Argument(help="TOML: model, texts, context, windows, methods; see experiments/quality-lab.")


def lab(
    file: Annotated[Path, _file()],
    output: RecordFolder = None,
    force: Force = False,
    format: Format = RecordFormat.table,
) -> None:
    """Hold many ways of coding to each other: the same windows, the same exact tokens, the bits they really take.

    Windows are outermost, so what is exact is computed once for all methods; each method's window is kept as it is
    done, and the same command goes on from there. Beside the records lie methods.csv, methods.md and Pareto plots.
    """
    from pqkv.config import read_config_file
    from pqkv.lab.bound import read_bound
    from pqkv.lab.config import LabConfig
    from pqkv.lab.outcome import floors, groups, write_outcome
    from pqkv.lab.pareto import write_pareto
    from pqkv.record import RecordStore
    from pqkv_cli.lab_tables import print_lab

    config = LabConfig.parse(read_config_file(file), source=file.name)
    names: dict[str, str] = {}

    def cells(store: RecordStore | None, bar: ProgressBar) -> Iterator[Record]:
        from pqkv.lab.run import run_lab

        for name, record in run_lab(config, store, force=force, report=bar.show):
            names[record.digest] = name
            yield record

    records = gather(cells, output)

    found = groups(records, names, config.against)
    if output is not None and found:
        write_outcome(found, output)
        bound = read_bound(output, config.model)
        write_pareto(found, output, floors=floors(RecordStore(output).load_all(), found), bound=bound)
    print_records(records, format, output, lambda ran: print_lab(found))
    raise_if_failed(records)
