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
    done, and the same command goes on from there.
    """
    from pqkv.config import read_config_file
    from pqkv.lab.config import LabConfig

    config = LabConfig.parse(read_config_file(file), source=file.name)
    names: dict[str, str] = {}

    def cells(store: RecordStore | None, bar: ProgressBar) -> Iterator[Record]:
        from pqkv.lab.run import run_lab

        for name, record in run_lab(config, store, force=force, report=bar.show):
            names[record.digest] = name
            yield record

    records = gather(cells, output)

    def table(ran: list[Record]) -> None:
        from pqkv_cli.lab_tables import print_lab

        print_lab(ran, names, config.against)

    print_records(records, format, output, table)
    raise_if_failed(records)
