"""Everything that decides what a training run computes, and the recipes that ship."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pqkv.config import digest_of
from pqkv.errors import ConfigError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(_Frozen):
    """A Llama of this size; the weights must stay under 32 MiB in bfloat16."""

    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    mlp: int = Field(gt=0)
    vocabulary: int = Field(ge=300, le=1 << 16)
    positions: int = Field(gt=0)
    rope_theta: float = Field(gt=0)

    def parameters(self) -> int:
        """Weights, the tied embedding counted once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.mlp + 2 * self.hidden
        return self.layers * layer + self.vocabulary * self.hidden + self.hidden


class Stage(_Frozen):
    """A run of steps at one sequence length.

    `recall` is the share of the tokens that are planted facts and questions; with `fillers` (low, high) set, a sequence
    is nothing but facts and questions with that many tokens of text between two facts, and `recall` does not count.
    """

    name: str
    length: int = Field(gt=0)
    sequences: int = Field(gt=0)
    steps: int = Field(gt=0)
    recall: float = Field(ge=0, le=0.6)
    fillers: tuple[int, int] | None = None


class Recipe(_Frozen):
    """Shape, stages and optimizer. Two runs of one recipe on one machine with one number of threads are equal bit for
    bit, however often they were interrupted.
    """

    shape: Shape
    stages: tuple[Stage, ...]
    seed: int = 0
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    warmup_steps: int = 50
    decay_from: float = Field(0.4, ge=0, le=1)
    final_lr: float = Field(0.02, ge=0, le=1)
    answer_weight: float = Field(1.0, gt=0)
    tokenizer_bytes: int = 20_000_000
    corpus_bytes: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if 2 * self.shape.parameters() > 32 << 20:
            raise ConfigError(f"{self.shape.parameters():,} parameters are over 32 MiB in bfloat16: make it smaller")
        if longest := [s.name for s in self.stages if s.length > self.shape.positions]:
            raise ConfigError(f"stage {longest[0]} is longer than the {self.shape.positions} positions of the model")
        return self

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Tokens seen in the whole run, planted ones included."""
        return sum(stage.steps * stage.sequences * stage.length for stage in self.stages)

    def stage_of(self, step: int) -> tuple[int, int]:
        """The index of the stage that `step` (from 0) belongs to, and the step's number within it."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        raise ConfigError(f"the recipe has {self.steps} steps")

    def rate(self, step: int) -> float:
        """Factor on both learning rates: linear warm-up, constant, linear decay to `final_lr`."""
        up = min(1.0, (step + 1) / max(1, self.warmup_steps))
        start = self.decay_from * self.steps
        left = (self.steps - step) / max(1.0, self.steps - start)
        return up * (1.0 if step < start else self.final_lr + (1 - self.final_lr) * left)

    def digest(self) -> str:
        return digest_of(self.model_dump(mode="json"))


# 15.3M parameters. A billion tokens are about twenty minutes on an H200.
GPU = Recipe(
    shape=Shape(
        layers=10, hidden=320, heads=8, kv_heads=2, head_dim=64, mlp=896, vocabulary=8192, positions=8192,
        rope_theta=200_000.0,
    ),
    stages=(
        Stage(name="facts", length=512, sequences=512, steps=300, recall=0, fillers=(0, 24)),
        Stage(name="short", length=1024, sequences=256, steps=1800, recall=0.15),
        Stage(name="middle", length=2048, sequences=128, steps=900, recall=0.12),
        Stage(name="long", length=8192, sequences=32, steps=900, recall=0.1),
    ),
    answer_weight=3.0,
)  # fmt: skip

# The first version's shape, to be trained on from its weights (`--init-from`): what two cores reach in two hours.
CPU = Recipe(
    shape=Shape(
        layers=6, hidden=256, heads=4, kv_heads=2, head_dim=64, mlp=640, vocabulary=4096, positions=8192,
        rope_theta=50_000.0,
    ),
    stages=(
        Stage(name="facts", length=256, sequences=16, steps=160, recall=0, fillers=(0, 24)),
        Stage(name="short", length=512, sequences=12, steps=250, recall=0.3),
        Stage(name="middle", length=2048, sequences=3, steps=300, recall=0.25),
        Stage(name="long", length=8192, sequences=1, steps=40, recall=0.15),
    ),
    muon_lr=0.01,
    adam_lr=0.002,
    answer_weight=4.0,
    corpus_bytes=60_000_000,
)  # fmt: skip

# On from what CPU left, on a CPU again: distance instead of new facts, and two rates that only fall.
CPU_LONG = Recipe(
    shape=CPU.shape,
    stages=(
        Stage(name="four", length=4096, sequences=2, steps=120, recall=0.12),
        Stage(name="eight", length=8192, sequences=1, steps=110, recall=0.12),
    ),
    seed=1,
    muon_lr=0.004,
    adam_lr=0.0008,
    warmup_steps=10,
    decay_from=0.2,
    answer_weight=4.0,
    corpus_bytes=60_000_000,
)

# Seconds; for tests and to see that every step runs.
TINY = Recipe(
    shape=Shape(
        layers=2, hidden=64, heads=4, kv_heads=1, head_dim=16, mlp=96, vocabulary=512, positions=256,
        rope_theta=10_000.0,
    ),
    stages=(
        Stage(name="facts", length=128, sequences=4, steps=4, recall=0, fillers=(0, 8)),
        Stage(name="long", length=256, sequences=2, steps=4, recall=0.3),
    ),
    warmup_steps=2,
    tokenizer_bytes=200_000,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {"gpu": GPU, "cpu": CPU, "cpu-long": CPU_LONG, "tiny": TINY}
