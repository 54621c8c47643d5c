"""Needles of lm-evaluation-harness by depth, on the exact cache, on codes, and on codes dealt to the wrong tokens.

python experiments/checks/needles.py [--model smollm2] [--fact word] [--needles 10] [-o results/checks]

What `pqkv lm-eval --tasks pqkv_needle` scores, a row a cache: the share of columns that were codes, and of needles
answered at each depth of 3,000 characters.
"""

import argparse
from pathlib import Path
from typing import Any

from lm_eval import evaluate
from lm_eval.tasks import TaskManager
from recording import keep

from pqkv.harness.model import PQKVLM
from pqkv.harness.run import TASKS, register

DEPTHS = (10, 30, 50, 70, 90)
CACHES = {"exact": {"bits": 0}, "4 bits": {"bits": 4}, "2 bits": {"bits": 2}, "control": {"bits": 4, "control": True}}

asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("--model", default="smollm2")
asked.add_argument("--fact", default="word")
asked.add_argument("--needles", type=int, default=10)
asked.add_argument("-o", "--output", type=Path)
given = asked.parse_args()
SIZE = {"needles": given.needles, "characters": 3000, "fact": given.fact}


def measured() -> list[dict[str, Any]]:
    register()
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=SIZE)
    return [row(manager, name, options) for name, options in CACHES.items()]


def row(manager: TaskManager, name: str, options: dict[str, Any]) -> dict[str, Any]:
    lm = PQKVLM(pretrained=given.model, **options)
    results = evaluate(lm, manager.load([f"pqkv_needle_{depth}" for depth in DEPTHS]), bootstrap_iters=0)["results"]
    seen = list(lm.shares.get("loglikelihood", {}).values())
    columns = sum(one.columns for one in seen)
    share = sum(one.coded for one in seen) / columns if columns else 0.0
    return {"cache": name, "coded": share, **{f"depth_{d}": results[f"pqkv_needle_{d}"]["acc,none"] for d in DEPTHS}}


keep("needles", {"model": given.model, **SIZE}, given.output, measured)
