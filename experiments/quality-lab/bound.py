"""How far our codes are from what a Gaussian with the same spectra allows:

    python experiments/quality-lab/bound.py MODEL DATA

Prints, by side and bits, the least error over spread in the metric of what meets it, what ours has on the very samples
it learnt from, and their ratio. The first is reverse water-filling over each head's spectrum: no code of any kind does
better on a Gaussian; keys and values are none, so real codes may.
"""

import sys

import torch

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.samples import Samples
from pqkv.config import CodecCalibration
from pqkv.lab.bound import relative_bound
from pqkv.lm.calibrate import calibrate_codecs
from pqkv.lm.load import load_model

BITS = (4, 3, 2)
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


def main(model: str, data: str) -> None:
    samples = calibrate_codecs(load_model(model), CodecCalibration(data=data)).samples
    bounds = {side: relative_bound(samples, side, BITS) for side in ("keys", "values")}
    still = relative_bound(samples, "keys", BITS, pre_rope=True)
    print("| bits | side | Gaussian bound | ours | ours over the bound | bound before rotary embedding |")
    print("|---|---|---|---|---|---|")
    for bits in BITS:
        ours = relative_error(CodecSpec.parse(OURS.format(bits=bits)), samples)
        for side, bound in bounds.items():
            cells = [bound[bits], ours[side], still[bits] if side == "keys" else None]
            least, found, before = ("" if cell is None else f"{cell:.2g}" for cell in cells)
            print(f"| {bits} | {side} | {least} | {found} | {ours[side] / bound[bits]:.1f} | {before} |")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
