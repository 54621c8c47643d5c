"""Three tasks of the harness made of local files: multiple choice, perplexity, generation."""

import json
import random

import yaml
from models import WORDS

CHOICES = ["river", "mill", "bread", "winter"]


def _prose(draw, words):
    return " ".join(draw.choice(WORDS.split()) for _ in range(words))


def _write(folder, name, rows, settings):
    data = folder / f"{name}.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "arrow")},
        "test_split": "test",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def write_tasks(folder, *, words=60, documents=4):
    """Write `local_choice`, `local_text` and `local_words`, whose prompts have about `words` words each."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    lengths = [words + 3 * i for i in range(documents)]  # so that batches are padded
    _write(
        folder,
        "local_choice",
        [{"prompt": _prose(draw, n), "choices": CHOICES, "label": draw.randrange(4)} for n in lengths],
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
        },
    )
    _write(
        folder,
        "local_text",
        [{"text": _prose(draw, n)} for n in lengths],
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    )
    _write(
        folder,
        "local_words",
        [{"prompt": _prose(draw, n), "answer": "bread"} for n in lengths],
        {
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    )
    return folder
