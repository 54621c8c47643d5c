"""What the parts of `million` share: the model, the codebooks, and how a cell is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqkv.cell import run_cell
from pqkv.config import Channels, CodeMetric, EvalConfig, Mode, Scope, TrainConfig
from pqkv.env import environment, git_state
from pqkv.errors import ConfigError, PqkvError
from pqkv.record import Metric, Record
from pqkv.reproduce.million.settings import Settings, Shape
from pqkv.reproduce.models import check_contexts
from pqkv.reproduce.run import Request

if TYPE_CHECKING:
    from pqkv.lm import LanguageModel
    from pqkv.lm.calibrate import Calibrated
    from pqkv.quality.cell_run import Shared
    from pqkv.text import Corpus

# what a record says of a training: by name, so that a key which comes to `TrainConfig` renames no record
_TRAINING = (
    "dtype", "data", "split", "num_subspaces", "nbits", "scope", "channels", "metric", "samples", "calibration_tokens",
    "context", "iterations", "seed",
)  # fmt: skip
NAME = "million"
FAILED = "million-part"
CLAIMED_BITS = 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """How codebooks are trained."""

    name: str
    scope: Scope
    channels: Channels
    metric: CodeMetric


MILLION = Recipe("MILLION", "global", "adjacent", "euclidean")
OURS = Recipe("ours", "head", "balanced", "query")


class Lab:
    """One run of the experiment. The model is loaded and the calibration text run through it when first needed."""

    def __init__(self, settings: Settings, request: Request) -> None:
        self.settings, self.request = settings, request
        self.env, self.git = environment(), git_state()
        self._calibration_text: Corpus | None = None

    @cached_property
    def lm(self) -> LanguageModel:
        """The model, in float32 on the processor."""
        from pqkv.lm import load_model

        return load_model(self.settings.model)

    @cached_property
    def shared(self) -> Shared:
        """The model, its tokens and its exact states, for all evaluations."""
        from pqkv.quality.cell_run import Shared

        return Shared(self.lm)

    def check_model(self) -> None:
        """Raise `ConfigError` for a model that the settings do not suit: too few positions, heads that the shapes do
        not divide, or shapes of which none comes to the bits that are claimed.
        """
        s, lm = self.settings, self.lm
        check_contexts(NAME, lm, (*s.contexts, *s.opq_contexts, s.calibration_context))
        shapes, dim = (*s.shapes, *s.opq_shapes), lm.head_dim
        if wrong := [M for M, _ in shapes if dim % M]:
            what = f"{wrong[0]} subspaces do not divide its heads of {dim}"
        elif not any(M * nbits == CLAIMED_BITS * dim for M, nbits in shapes):
            what = f"no shape is {CLAIMED_BITS} bits an element for its heads of {dim}"
        else:
            return
        raise ConfigError(
            f'{NAME} cannot ask {lm.name}: {what}; give shapes and opq_shapes in a table [models."{lm.name}"] of '
            f"experiments/{NAME}/experiment.toml"
        )

    @cached_property
    def calibrated(self) -> Calibrated:
        """One capture for all codebooks: they differ in their codes only."""
        from pqkv.lm.calibrate import calibrate

        narrowest = min(self.settings.shapes, key=lambda shape: shape[1])  # wider codes say themselves what they lack
        return calibrate(self.lm, self.training(OURS, narrowest), self.request.report)

    def training(self, recipe: Recipe, shape: Shape) -> TrainConfig:
        """How codebooks of this recipe and shape are trained.

        A training computes books x subspaces x samples x centroids x iterations distances. Where `iterations`
        would be more than `distances`, it gets as many as fit, but `least_iterations`; samples are never cut.
        """
        s, (M, nbits) = self.settings, shape
        books = 2 * (len(self.lm.coded_layers) * self.lm.num_kv_heads if recipe.scope == "head" else 1)
        fit = int(s.distances / (books * M * s.samples * 2**nbits))
        values = {
            "model": s.model,
            "data": s.calibration,
            "num_subspaces": M,
            "nbits": nbits,
            "recipe": "product",  # the report's codes, and ours beside them: of the vectors as they are
            "scope": recipe.scope,
            "channels": recipe.channels,
            "metric": recipe.metric,
            "samples": s.samples,
            "calibration_tokens": s.calibration_tokens,
            "context": s.calibration_context,
            "positions": s.calibration_positions or s.calibration_context,
            "init": s.init,
            "iterations": max(min(s.least_iterations, s.iterations), min(s.iterations, fit)),
            "seed": s.seed,
        }
        return TrainConfig.parse(values, source=f"million, training of {recipe.name}")

    def cell(self, kind: str, config: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> Record:
        """Run a cell of this experiment, unless it has a record."""
        return run_cell(
            measure,
            kind=kind,
            config=config,
            seed=self.settings.seed,
            env=self.env,
            git=self.git,
            store=self.request.store,
            force=self.request.force,
        )

    def codebooks(self, wanted: Sequence[tuple[Recipe, Shape]], found: list[str]) -> Iterator[Record]:
        """Train each, or find it where it was trained before, and put its file into `found`; those that cannot be
        trained are failed records.
        """
        from pqkv.lm.defaults import default_codebooks

        for recipe, shape in wanted:
            training = self.training(recipe, shape)
            paths: list[Path] = []

            def measure(training: TrainConfig = training, paths: list[Path] = paths) -> dict[str, Any]:
                books, header, path = default_codebooks(self.lm, training, self.request.report, lambda: self.calibrated)
                paths.append(path)
                rows = zip(header.errors, header.query_errors, strict=True)
                errors = [
                    {"layer": i, "keys_centred": k, "values_centred": v, "keys_in_query_metric": q}
                    for i, ((k, v), q) in enumerate(rows)
                ]
                metrics = {"code_bits": Metric(value=books.code_bits, unit="bits")}
                return {"metrics": metrics, "tables": {"errors": errors}}

            record = self.cell("million-codebooks", self.about(training), measure)
            if record.status == "ok" and not paths:
                measure()  # it has a record, so only the file is needed
            found += map(str, paths)
            yield record

    def about(self, training: TrainConfig) -> dict[str, Any]:
        """The configuration of a record of codebooks: all that their errors depend on."""
        about = training.model_dump(mode="json", include=set(_TRAINING))
        about |= {"data": self.calibration_name, "model": self.lm.name, "model_weights": self.lm.fingerprint}
        about |= {} if training.init == "random" else {"init": training.init}
        about |= {} if training.positions == training.context else {"positions": training.positions}
        return about | self.recorded_form(training)

    def recorded_form(self, training: TrainConfig) -> dict[str, Any]:
        """What a record says of how the calibration text became tokens."""
        from pqkv.lm.tokens import recorded_form, token_form
        from pqkv.text import load_corpus

        form = token_form(self.lm, training.bos, parse_special=training.parse_special)
        if self._calibration_text is None:
            self._calibration_text = load_corpus(training.data, training.split, default="calibration")
        return recorded_form(self.lm, self._calibration_text, form)

    @property
    def calibration_name(self) -> str:
        """The calibration text in a record, without the path of a machine."""
        return Path(self.settings.calibration).name

    def evaluated(
        self,
        part: str,
        paths: Sequence[str],
        mode: Mode,
        *,
        texts: Sequence[str],
        contexts: Sequence[int],
        windows: int,
        **cache: Any,  # noqa: ANN401 - fields of EvalConfig
    ) -> Iterator[Record]:
        """The cells of `pqkv eval` for these codebook files, on each text by itself: one that cannot be read, or was
        trained on, is a failed record and the others go on.
        """
        from pqkv.quality.evaluate import evaluate

        report = self.request.report
        for data in texts if paths else ():
            values = {
                "model": self.settings.model,
                "data": data,
                "codebooks": tuple(paths),
                "mode": (mode,),
                "context": tuple(contexts),
                "windows": windows,
                "metrics": ("perplexity", "agreement", "kld"),
                "topk": (1,),
                "seed": self.settings.seed,
                **cache,
            }
            config = EvalConfig.parse(values, source=f"million, part {part}")
            try:
                yield from evaluate(
                    config,
                    self.request.store,
                    force=self.request.force,
                    shared=self.shared,
                    report=lambda p: report(f"{part}: {p.stage}", p.done, p.total),
                )
            except PqkvError as error:
                yield self.failure(part, error, mode=mode, data=Path(data).name)

    def failure(self, part: str, error: PqkvError, **about: str) -> Record:
        """What a part that cannot begin yields; kept nowhere, as there is no cell it would be the outcome of."""
        cause = str(error)

        def raising() -> dict[str, Any]:
            raise PqkvError(f"{part}: {cause}")

        return run_cell(
            raising, kind=FAILED, config={"part": part, **about}, seed=self.settings.seed, env=self.env, git=self.git
        )
