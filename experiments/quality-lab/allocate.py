"""Bits dealt out to layers and sides: python experiments/quality-lab/allocate.py FOLDER BITS...

FOLDER has the records of these two, RECIPE being our 4 bits:

    pqkv lab experiments/quality-lab/widths.toml -o FOLDER
    pqkv eval --model smollm2 --data wikitext2-validation.txt --mode all-coded --coded-sinks 4 --context 1024
      --windows 2 --metrics kld --by-layer --calibration-data wikipedia.jsonl --codec RECIPE -o FOLDER

What each layer loses alone comes from the second, by how much more or less a side loses at other widths from the first.
Printed are methods for a lab's file, with the loss that is expected of them.
"""

import sys
from pathlib import Path

from pqkv.lab.allocation import allocate
from pqkv.record import Record, load_records

KEYS = "composed:layer_bits={bits},mean=turning,metric=full,transform=klt"
VALUES = "composed:layer_bits={bits},mean=constant,gain=true,transform=hadamard,scope=universal"
WIDTHS = (6, 4, 3, 2)
BASE = 4


def ratios(records: list[Record], side: str) -> dict[float, float]:
    """Loss of a side alone at each width over that at 4 bits."""
    other = {"keys": "values", "values": "keys"}[side]
    found: dict[float, float] = {}
    for record in records:
        codec = record.config["codec"]
        if record.kind == "eval" and codec[other]["codec"] == "exact":
            found[codec[side]["bits"]] = record.metrics["kld_mean"].value
    return {width: found[width] / found[BASE] for width in WIDTHS}


def methods(folder: Path, wanted: list[float]) -> str:
    records = [r for r in load_records(folder) if r.config.get("codec")]
    (alone,) = (r for r in records if r.kind == "eval-by-layer")
    rows = alone.tables["by_layer"]
    keys, values = ([row[side] for row in rows] for side in ("keys", "values"))
    lines = []
    for bits in wanted:
        dealt = allocate(keys, values, ratios(records, "keys"), ratios(records, "values"), bits)
        sides = [text.format(bits="+".join(f"{b:g}" for b in side))
                 for text, side in ((KEYS, dealt.keys), (VALUES, dealt.values))]  # fmt: skip
        lines.append(f'"pqkv {bits:g}, dealt" = "{"/".join(sides)}"    # {dealt.expected:.3g} nats expected')
    return "\n".join(lines)


if __name__ == "__main__":
    print(methods(Path(sys.argv[1]), [float(word) for word in sys.argv[2:]]))
