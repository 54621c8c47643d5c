"""The parts of a step on a GPU: in turn they are the step, whatever the earlier phases left in its slots."""

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from served import SERVED

from pqkv.errors import KernelError
from pqkv.kernels.cuda.parts import decode_parts

SMALL = Spec(
    context=(64, 3), sinks=(1, 4), residual=(2, 3), head_dim=16, heads=1, group=2, subspaces=(8, 8), nbits=4,
    dtype=torch.float16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (SMALL, ["key tables", "scores", "softmax", "values", "exact part"]),
        (SMALL.but(group=4), ["key centroids", "scores", "softmax", "values", "exact part"]),
        (SMALL.but(**SERVED), ["key tables", "scores", "softmax", "values", "exact part"]),
        (SMALL.but(dtype=torch.float32), ["plain kernel", "exact part"]),
        (SMALL.but(dtype=torch.float32, **SERVED), ["plain kernel", "exact part"]),
        (SMALL.but(nbits=None, layouts=("row", "row"), sinks=None, residual=None), ["exact pages"]),
    ],
)
def test_parts_in_turn_are_the_step(spec, names, device):
    batch = build(spec)
    args = [None if part is None else part.to(device) for part in batch.inputs]
    parts = decode_parts(*args, scale=0.25)
    assert [part.name for part in parts] == ["arguments", *names, "merge"]
    results = [part.run() for part in parts]
    out, lse = results[-1]
    expected, expected_lse = brute_force(batch, 0.25, None)
    tolerance = 3e-5 if spec.dtype == torch.float32 else 3e-3
    np.testing.assert_allclose(out.double().cpu().numpy(), expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(lse.double().cpu().numpy(), expected_lse, atol=tolerance)
    known = {part.name for part in parts}
    assert all(part.beyond is None or part.beyond in known for part in parts)


def test_a_phase_that_is_left_out_leaves_its_results_out(device):
    """Each phase does what the last did and more: only the last one's slots merge to the right answer."""
    batch = build(SMALL)
    expected, _ = brute_force(batch, 0.25, None)
    outs = {}
    for end in ("scores", "softmax", "values"):
        parts = decode_parts(*(part.to(device) for part in batch.inputs), scale=0.25)
        by_name = {part.name: part for part in parts}
        by_name[end].run()
        by_name["exact part"].run()
        outs[end] = by_name["merge"].run()[0].double().cpu().numpy()
    assert np.abs(outs["values"] - expected).max() < 3e-3 * np.abs(expected).max()
    assert all(not np.abs(outs[end] - expected).max() < 1e-2 for end in ("scores", "softmax"))


def test_what_torch_computes_has_no_parts(device):
    batch = build(SMALL.but(dtype=torch.float32))
    query, *rest = (part.to(device) for part in batch.inputs)
    with pytest.raises(KernelError, match="leaves this case to torch"):
        decode_parts(query.repeat(1, 2, 1, 1), *rest, scale=0.25)
