"""Time of one optimizer step on the bundled model's matrices: torch's Muon beside the trainer's own, in turns.

.venv/bin/python experiments/checks/muon_step.py [ROUNDS]
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from pqkv.lm import load_model

sys.path.insert(0, str(Path(__file__).parent.parent / "reference-model"))  # the trainer is no installed package
from refmodel.optim import Muon

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
matrices = [
    p for name, p in load_model().model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name
]  # fmt: skip
torch.manual_seed(0)
for p in matrices:
    p.grad = torch.randn_like(p)
steps = {
    "torch.optim.Muon": torch.optim.Muon(matrices, lr=1e-6, momentum=0.95),
    "own, float32, batched": Muon(matrices, 1e-6, 0.95, torch.float32),
}
seconds: dict[str, list[float]] = {name: [] for name in steps}
for _ in range(rounds):
    for name, optimizer in steps.items():
        start = time.perf_counter()
        optimizer.step()
        seconds[name].append(time.perf_counter() - start)
first, second = (statistics.median(found) for found in seconds.values())
print(f"{len(matrices)} matrices, {torch.get_num_threads()} threads, median of {rounds}")
times = ", ".join(f"{name}: {statistics.median(found):.2f} s" for name, found in seconds.items())
print(f"{times}; {first / second:.0f}x")
