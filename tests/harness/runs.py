"""Runs of the harness on local tasks."""

from lm_eval import evaluate, simple_evaluate
from lm_eval.tasks import TaskManager

LOCAL = ["local_choice", "local_text", "local_words"]
SMALL = {"page_size": 16, "residual": 32}  # codes from the thirty-sixth token on


def run(model, folder, names=LOCAL, metadata=None, **more):
    """What the harness makes of `names` in `folder`."""
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    return evaluate(model, manager.load(names), bootstrap_iters=0, **more)


def run_and_describe(model, folder, names=LOCAL):
    """The same with what results say of model and machine, which takes seconds to find out."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)


def responses(results, name):
    """What the model answered, document by document."""
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for one in sample["resps"] for answer in one]


def metric(results, name, key):
    return results["results"][name][f"{key},none"]
