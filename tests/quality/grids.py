"""Small evaluations: codebooks of a few samples, and the grid as a list of records."""

from pqkv.codec.codebook_file import save_codebooks
from pqkv.config import EvalConfig, TrainConfig
from pqkv.lm.train import train
from pqkv.quality.evaluate import evaluate


def trained(lm, path, calibration, seed=0, nbits=4, recipe="pqkv"):
    training = TrainConfig(
        data=str(calibration), num_subspaces=lm.head_dim // 4, nbits=nbits, calibration_tokens=1000, context=200,
        samples=500, iterations=2, seed=seed, recipe=recipe,
    )  # fmt: skip
    save_codebooks(path, *train(lm, training))
    return str(path)


def run(values, store=None, **more):
    return list(evaluate(EvalConfig(**values), store, **more))
