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
from pqkv.errors import PqkvError
from pqkv.record import Metric, Record
from pqkv.reproduce.million.settings import Settings, Shape
from pqkv.reproduce.run import Request

if TYPE_CHECKING:
    from pqkv.lm import LanguageModel
    from pqkv.lm.calibrate import Calibrated
    from pqkv.text import Corpus

_TEXT_KEYS = ("bos", "parse_special")  # recorded as what they came to, where that matters
FAILED = "million-part"


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
    def calibrated(self) -> Calibrated:
        """One capture for all codebooks: they differ in their codes only."""
        from pqkv.lm.calibrate import calibrate

        return calibrate(self.lm, self.training(OURS, self.settings.page_shape), self.request.report)

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
            "scope": recipe.scope,
            "channels": recipe.channels,
            "metric": recipe.metric,
            "samples": s.samples,
            "calibration_tokens": s.calibration_tokens,
            "context": s.calibration_context,
            "positions": s.calibration_context,
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

            about = training.model_dump(mode="json", exclude={"model", "device", "device_map", "bits", *_TEXT_KEYS})
            about |= {"data": self.calibration_name, "model": self.lm.name, "model_weights": self.lm.fingerprint}
            if training.init == "random":  # of which records of before say nothing, nor of positions
                del about["init"]
            del about["positions"]
            about |= self.recorded_form(training)
            record = self.cell("million-codebooks", about, measure)
            if record.status == "ok" and not paths:
                measure()  # it has a record, so only the file is needed
            found += map(str, paths)
            yield record

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
