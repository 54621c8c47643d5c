"""Records as a table: one row a record, one column a key, three a metric."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqkv.metrics import metric_order
from pqkv.record import Record, atomic_write
from pqkv.report.series import as_text, cells, codec_name, machine_of

if TYPE_CHECKING:
    import pandas as pd

# The configuration keys that matter, with the pandas type that keeps a missing value from turning ints into floats.
CONFIG_COLUMNS = {
    "model": "string", "data": "string", "split": "string", "bits": "Float64", "num_subspaces": "Int64",
    "nbits": "Int64", "scope": "string", "codec": "string", "mode": "string", "context": "Int64", "page_size": "Int64",
    "residual": "Int64", "sink_tokens": "Int64", "key_layout": "string", "value_layout": "string",
    "paged": "boolean", "backend": "string", "dtype": "string", "device": "string", "seed": "Int64", "bos": "Int64",
    "special_tokens": "string", "chat": "string",
}  # fmt: skip


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record in report order: `kind`, `status`, `machine`, `digest`, the configuration keys that matter,
    `seconds`, and `name`, `name_low`, `name_high` of every metric that some record has; NaN where one has it not.
    """
    import pandas as pd

    ordered = [cell.record for cell in cells(records)]
    metrics = sorted({name for record in ordered for name in record.metrics}, key=metric_order)
    columns: dict[str, pd.Series] = {
        "kind": pd.Series([record.kind for record in ordered], dtype="string"),
        "status": pd.Series([record.status for record in ordered], dtype="string"),
        "machine": pd.Series([machine_of(record) for record in ordered], dtype="string"),
        "digest": pd.Series([record.digest for record in ordered], dtype="string"),
    }
    for key, dtype in CONFIG_COLUMNS.items():
        columns[key] = _typed([_lookup(record, key) for record in ordered], dtype)
    columns["seconds"] = pd.Series([record.seconds for record in ordered], dtype="float64")
    for name in metrics:
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            values = [getattr(record.metrics.get(name), part, None) for record in ordered]
            columns[name + suffix] = pd.Series(values, dtype="float64")
    return pd.DataFrame(columns)


def write_csv(records: Iterable[Record], path: Path) -> Path:
    """Write `to_frame(records)` as CSV in UTF-8, floats with every digit; return the path."""
    text = to_frame(records).to_csv(index=False, lineterminator="\n")
    atomic_write(path, text.encode("utf-8", "backslashreplace"))
    return path


def _lookup(record: Record, key: str) -> Any:  # noqa: ANN401 - any JSON scalar
    if key == "codec":
        return codec_name(record.config) or None
    value = record.config.get(key, record.seed if key == "seed" else None)
    return as_text(value) if isinstance(value, list | dict) else value


def _typed(values: list[Any], dtype: str) -> pd.Series:
    import pandas as pd

    try:
        return pd.Series(values, dtype=dtype)
    except (TypeError, ValueError):  # another kind of cell uses the key for something else: shown as it is
        return pd.Series(values, dtype="object")
