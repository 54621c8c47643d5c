"""How far our codes are from what a Gaussian with the same spectra allows:

    python experiments/quality-lab/bound.py MODEL DATA -o results/quality-lab/bound
    python experiments/quality-lab/tables.py bound

The record holds, by side and bits, the least error over spread in the metric of what meets it, and what ours has on the
very samples it learnt from. The first is reverse water-filling over each head's spectrum: no code of any kind does
better on a Gaussian; keys and values are none, so real codes may. Keys have a Gaussian of their own at every position,
as rotary embedding turns the one they have before it: the bound is the mean over positions. Beside it stands what one
Gaussian for all positions would allow, around the mean that turns: what a frame that does not turn could reach.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from pqkv.cell import run_cell
from pqkv.codec.catalog import CodecSpec
from pqkv.codec.samples import Samples
from pqkv.config import CodecCalibration
from pqkv.env import environment, git_state
from pqkv.lab.bound import relative_bound
from pqkv.lm.calibrate import calibrate_codecs
from pqkv.lm.load import load_model
from pqkv.record import RecordStore, load_records

WIDTHS = Path(__file__).parents[2] / "results/quality-lab/widths"
BITS = (4, 3, 2)
POSITIONS = 64  # of each layer and head that the bound of keys is averaged over
OURS = (
    "composed:bits={bits},mean=turning,metric=full,transform=klt"
    "/composed:bits={bits},mean=constant,gain=true,transform=hadamard,scope=universal"
)


def relative_error(spec: CodecSpec, samples: Samples) -> dict[str, float]:
    """Error over spread of either side, mean over layers."""
    codec = spec.make(spec.learn(samples))
    totals = {"keys": 0.0, "values": 0.0}
    layers = len(samples.keys)
    for layer in range(layers):
        exact = samples.keys[layer], samples.values[layer]
        restored = codec.restore(layer, exact[0][None], exact[1][None], samples.positions)
        for side, x, y in zip(totals, exact, restored, strict=True):
            A = samples.metric(side)[layer].double()
            e, spread = (y[0] - x).double(), (x - x.mean(1, keepdim=True)).double()
            totals[side] += float(((e @ A) * e).sum() / ((spread @ A) * spread).sum()) / layers
    return totals


def alone() -> dict[tuple[str, float], float]:
    """KLD in nats by side and bits, the other side exact and every layer coded at one width."""
    found = {}
    for record in load_records(WIDTHS):
        codec = record.config["codec"]
        for side, other in (("keys", "values"), ("values", "keys")):
            if codec[other] == {"codec": "exact"} and not codec[side]["layer_bits"]:
                found[side, codec[side]["bits"]] = record.metrics["kld_mean"].value
    return found


def measure(samples: Samples) -> dict[str, Any]:
    """Of a cell: losses by side and bits."""
    bounds = {
        "keys": relative_bound(samples, "keys", BITS, positions=POSITIONS),
        "values": relative_bound(samples, "values", BITS),
    }
    around = relative_bound(samples, "keys", BITS, around="turning")
    measured = alone()
    rows = []
    for bits in BITS:
        ours = relative_error(CodecSpec.parse(OURS.format(bits=bits)), samples)
        for side, bound in bounds.items():
            rows.append({
                "side": side, "bits": bits, "bound": bound[bits], "error": ours[side], "kld": measured[side, bits],
                "one_gaussian": around[bits] if side == "keys" else None,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return {"tables": {"losses": rows}}


def main(model: str, data: str, folder: Path) -> None:
    calibration, lm = CodecCalibration(data=data), load_model(model)
    described = {
        "model": model, "data": data, "calibration_tokens": calibration.calibration_tokens, "bits": list(BITS),
        "positions": POSITIONS, "recipe": OURS,
    }  # fmt: skip
    run_cell(
        lambda: measure(calibrate_codecs(lm, calibration).samples),
        kind="bound", config=described, seed=0, env=environment(), git=git_state(), store=RecordStore(folder),
        force=True,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="calibration text")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the record")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    main(given.model, given.data, given.output)
