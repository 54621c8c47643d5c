"""One cell of an evaluation: run its windows, gather its measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqkv.cache import coded_len, effective_bits, footprint
from pqkv.codec import CodebookSet
from pqkv.codec.interface import Codec
from pqkv.codec.sizes import CodedSizes
from pqkv.config import STEPWISE, EvalConfig, Split
from pqkv.errors import OutOfPages, memory_is_short
from pqkv.kernels import ChosenBackend
from pqkv.kernels.faults import fault_of
from pqkv.lm import LanguageModel
from pqkv.lm.keep import Keeper
from pqkv.lm.plugin import Attended
from pqkv.lm.tokens import TokenForm, describe_tokens, token_stream
from pqkv.quality.batches import WINDOWS_TOGETHER, windows_together
from pqkv.quality.cells import Cell
from pqkv.quality.control import shuffled
from pqkv.quality.exact_states import ExactStates
from pqkv.quality.inputs import Inputs, model_inputs
from pqkv.quality.logits import logit_errors
from pqkv.quality.measures import PositionMeasures, compare
from pqkv.quality.memory import MemoryWatch, estimate
from pqkv.quality.modes import coded_states, decoded_states
from pqkv.quality.prefills import Prefills
from pqkv.quality.recall import RecallPrompt, answered, build_prompts, by_depth
from pqkv.quality.recall_words import TokensApart
from pqkv.quality.softmax_mass import SoftmaxMassProbe
from pqkv.quality.summary import bootstrap, by_position, finite, summarize
from pqkv.quality.whole_cache import whole_cache
from pqkv.record import Metric
from pqkv.text import Corpus, TokenStream, load_corpus

STATED_LENGTHS = (2048, 32768, 131072)
_QUESTION = 32  # more tokens than a question and its answer have


class Shared:
    """What cells of one model have in common, and evaluations that share it: token streams, exact states and, where
    `keep` says that several backends will decode on from them, prefilled caches. Raises `ModelError` for a model whose
    logits pqkv does not know how to make of its states.
    """

    def __init__(self, lm: LanguageModel, *, keep: bool = False) -> None:
        self.lm, self.exact, self.prefills = lm, ExactStates(lm), Prefills(keep=keep)
        lm.head.check()
        self._streams: dict[tuple[str, Split | None, TokenForm], tuple[Corpus, TokenStream]] = {}

    def stream(self, data: str, split: Split | None, form: TokenForm) -> tuple[Corpus, TokenStream]:
        """A text and its tokens."""
        key = data, split, form
        if key not in self._streams:
            corpus = load_corpus(data, split, default="test")
            self._streams[key] = corpus, token_stream(self.lm, corpus, form)
        return self._streams[key]


class CellRun:
    """Measures one cell."""

    def __init__(
        self,
        shared: Shared,
        config: EvalConfig,
        cell: Cell,
        backend: ChosenBackend,
        text: tuple[Corpus, TokenForm],
        step: Callable[[int, int], None],
    ) -> None:
        self.corpus, self.form = text
        self.lm, self.config, self.cell, self.step = shared.lm, config, cell, step
        self.exact, self.prefills = shared.exact, shared.prefills
        # by the name that was chosen: a cache that chose again would say once more, for every batch, what gave way
        self.cache = config.cache().model_copy(update={"backend": backend.name})
        self.stepwise = cell.mode in STEPWISE
        self.backend = backend
        self.fault = fault_of(backend.name)
        self.newest = config.decode_tokens if cell.mode == "decode" else 0  # tokens that are scored, 0 for all
        self.batch = WINDOWS_TOGETHER
        self._done = self._total = 0
        self._given: tuple[list[PositionMeasures], CodedSizes, Attended] | None = None
        self.attended, self.sizes = Attended(), CodedSizes()

    def measure(self, tokens: np.ndarray) -> dict[str, Any]:
        """All that a record holds of this cell's outcome, for windows (n, T).

        With fallbacks on, a paged cache that runs out of pages gives way to a contiguous one, and a batch that memory
        does not hold to single windows; the notes say so.
        """
        watch = MemoryWatch(estimate(self.lm, self.config, self.cell, len(tokens)), self.cell.label)
        notes = watch.notes
        while True:
            try:
                outcome = self._measure(tokens)
            except OutOfPages as error:
                needs_pages = self.cell.coding.codes is None or self.cache.window is not None
                if not self.config.fallback or not self.cache.paged or needs_pages:
                    raise
                self.cache = self.cache.model_copy(update={"paged": False})
                notes.append(f"{error}: a contiguous cache ran instead")
            except (RuntimeError, MemoryError) as error:  # torch's own for the CPU is a plain RuntimeError
                if not memory_is_short(error) or not self.config.fallback or self.batch == 1:
                    raise
                self.batch = 1
                self.prefills.clear()
                notes.append("memory did not hold several windows at once: they ran one by one")
            else:
                outcome["notes"] += notes
                expected = estimate(self.lm, self.config, self.cell, len(tokens), most=self.batch)
                outcome["tables"]["memory_plan"] = [watch.row(expected)]
                return outcome

    def outcome(
        self, tokens: np.ndarray, measures: list[PositionMeasures], sizes: CodedSizes, attended: Attended
    ) -> dict[str, Any]:
        """What `measure` returns, of predictions that were compared elsewhere."""
        self._given = measures, sizes, attended
        return self._measure(tokens)

    def _measure(self, tokens: np.ndarray) -> dict[str, Any]:
        wanted, books = self.config.metrics, self.cell.coding.codes
        probed = self.cell.mode in ("token", "decode") and "softmax-mass" in wanted
        probe = SoftmaxMassProbe(self.backend.run) if probed else None
        prompts, no_prompts = self._prompts(tokens) if "recall" in wanted else ([], None)
        predictions = any(name in wanted for name in ("perplexity", "agreement", "kld"))
        runs = (predictions + bool(prompts)) * (1 + (self.config.control and books is not None))
        self._done, self._total = 0, tokens.size * runs
        self.attended, self.sizes = Attended(), CodedSizes()
        measured: dict[str, Metric] = {}
        samples: dict[str, list[float]] = {}
        tables: dict[str, Any] = {"text": [describe_tokens(self.lm, self.corpus, self.form)]}
        if self.form.chat is not None:
            tables["text"][0]["answer_tokens"] = self._inputs(tokens[:1]).targets.shape[1]
        if predictions:
            found, tables["by_position"], samples = self._predictions(tokens, probe)
            measured |= found
        if prompts:
            found, tables["by_depth"] = self._recall(prompts, probe)
            measured |= found
        if self.attended.columns:
            measured["coded_share"] = Metric(value=self.attended.coded_columns / self.attended.columns)
        if probe is not None and probe.calls:
            measured["softmax_mass_error"] = Metric(value=finite(probe.mass_error), n=probe.calls)
            measured["lse_mass_error"] = Metric(value=finite(probe.lse_error), n=probe.calls)
        tables["layers"] = [
            {
                "coded": len(self.lm.coded_layers),
                "total": self.lm.num_layers,
                "attend_calls": self.attended.calls,
            }
        ]
        # what a codec takes is counted while it runs
        metrics, tables = {**self._memory(), **measured}, {"memory": self._stated_memory(), **tables}
        notes = [*self.lm.notes, *([no_prompts] if no_prompts else []), *self._remarks(metrics)]
        return {"metrics": metrics, "tables": tables, "samples": samples, "notes": notes}

    def _prompts(self, tokens: np.ndarray) -> tuple[list[RecallPrompt], str | None]:
        """Prompts for recall, or why there are none."""
        try:
            filler, coded = tokens[:, : self.cell.context], self._coded_columns()
            prompts = build_prompts(self.lm, filler, self.config.seed, self.form, coded)
        except TokensApart as error:
            return [], str(error)
        if self.newest:
            prompts = [p for p in (prompt.answered_by(self.newest) for prompt in prompts) if p.questions]
        if not prompts:
            return [], f"recall not measured: {self.cell.context} tokens leave no room for a fact and its question"
        return prompts, None

    def _coded_columns(self) -> tuple[int, int] | None:
        """First and end of the columns that are codes when a window ends, where recall plants its fact among them."""
        if self.config.recall_form != "word":
            return None
        context, cache = self.cell.context, self.cache
        if self.cell.mode == "all-coded" or self.cell.coding.codes is None:
            return self.cell.coded_sinks, context
        coded = coded_len(
            context - _QUESTION - (len(self.form.chat.between) if self.form.chat else 0),
            page_size=cache.page_size,
            residual=cache.residual,
            sink_tokens=cache.sink_tokens,
        )
        return cache.sink_tokens, cache.sink_tokens + coded

    def _remarks(self, metrics: dict[str, Metric]) -> list[str]:
        """What a reader of the figures has to know."""
        remarks = []
        coded, total = len(self.lm.coded_layers), self.lm.num_layers
        if coded < total:
            remarks.append(
                f"{coded} of {total} layers are coded (and counted); the others keep their exact sliding windows"
            )
        if self.cell.coding.codes is not None and self.attended.columns and not self.attended.coded_columns:
            remarks.append(
                f"nothing was coded: at {self.cell.context} tokens every row of mode {self.cell.mode} sees exact keys "
                "and values only, so these are figures of the exact cache"
            )
        if broken := sorted(name for name, metric in metrics.items() if metric.value is None):
            remarks.append(f"not a finite number: {', '.join(broken)}")
        return remarks

    def _predictions(
        self, tokens: np.ndarray, probe: SoftmaxMassProbe | None
    ) -> tuple[dict[str, Metric], list[dict[str, Any]], dict[str, list[float]]]:
        """Measures of what is predicted, by position, and by window."""
        books = self.cell.coding.codes
        if self._given is None:
            measures = self._compare(tokens, books, probe)
        else:
            measures, self.sizes, self.attended = self._given
        metrics = summarize(measures, self.config.metrics, self.config.seed)
        by_window = {
            "nll": [float(m.nll.mean()) for m in measures],
            "nll_exact": [float(m.nll_exact.mean()) for m in measures],
            "kld_mean": [float(m.kld.mean()) for m in measures],
        }
        if self.newest:  # does the damage grow with the tokens decoded?
            steps = torch.stack([m.kld for m in measures])  # (windows, steps)
            quarter = max(1, steps.shape[1] // 4)
            by_window["kld_by_step"] = steps.mean(0).tolist()
            by_window["kld_first_quarter"] = steps[:, :quarter].mean(1).tolist()
            by_window["kld_last_quarter"] = steps[:, -quarter:].mean(1).tolist()
            if errors := [float(m.logit_error.max()) for m in measures if m.logit_error is not None]:
                by_window["logit_error"] = errors
        samples = {name: values for name, values in by_window.items() if np.isfinite(values).all()}
        if self.config.control and books is not None:
            control = self._compare(tokens, shuffled(books), probe)
            metrics["kld_control"] = summarize(control, ("kld",), self.config.seed)["kld_mean"]
        return metrics, by_position(measures, self._inputs(tokens[:1]).position), samples

    def _inputs(self, tokens: np.ndarray) -> Inputs:
        """In mode decode a window (n, T) holds one token more than the context: what the newest of it predicts."""
        return model_inputs(tokens, self.newest, self.form, self.config.score_after)

    def _compare(
        self, tokens: np.ndarray, books: CodebookSet | Codec | None, probe: SoftmaxMassProbe | None
    ) -> list[PositionMeasures]:
        found = []
        inputs = self._inputs(tokens)
        for rows in self._batches(inputs.ids):
            ids, targets = (torch.from_numpy(part[rows]).to(self.lm.device) for part in (inputs.ids, inputs.targets))
            exact = self.exact(ids, self.newest)  # first: where it is no number, codes need not be tried
            coded = self._run(ids, books, probe)
            for b, first in enumerate(inputs.first[rows]):
                scored = slice(first, first + targets.shape[1])
                pair = exact[b, scored], coded[b, scored]
                compared = compare(*pair, targets[b], self.config.topk, self.lm.head)
                if self.newest:  # few positions: their logits are made once more
                    compared = replace(compared, logit_error=logit_errors(*pair, self.lm.head))
                found.append(compared)
                self.exact.check(found[-1].nll_exact)
        return found

    def _recall(
        self, prompts: list[RecallPrompt], probe: SoftmaxMassProbe | None
    ) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
        tokens = np.stack([prompt.ids for prompt in prompts])
        books = self.cell.coding.codes
        coded, exact, dealt = [], [], []
        for rows in self._batches(tokens):
            ids = torch.from_numpy(tokens[rows]).to(self.lm.device)
            references, found = self.exact(ids, self.newest), self._run(ids, books, probe)
            wrong: Iterable[Tensor] = []
            if self.config.control and books is not None:
                wrong = self._run(ids, shuffled(books), probe)
            exact += [answered(p, got, self.exact.head) for p, got in zip(prompts[rows], references, strict=True)]
            coded += [answered(p, got, self.lm.head) for p, got in zip(prompts[rows], found, strict=True)]
            dealt += [answered(p, got, self.lm.head) for p, got in zip(prompts[rows], wrong, strict=False)]
        metrics = {}
        for name, answers in (("recall", coded), ("recall_exact", exact), ("recall_control", dealt)):
            if not answers:
                continue
            right = np.array([sum(answer[1] for answer in window) for window in answers])
            asked = np.array([len(window) for window in answers])
            low, high = bootstrap([right, asked], lambda r, a: r.sum(-1) / a.sum(-1), self.config.seed)
            metrics[name] = Metric(value=float(right.sum() / asked.sum()), low=low, high=high, n=int(asked.sum()))
        return metrics, by_depth(coded, exact)

    def _run(self, ids: Tensor, books: CodebookSet | Codec | None, probe: SoftmaxMassProbe | None) -> Tensor:
        """States (B, T, hidden) of ids (B, T) on codes, or of their newest tokens."""
        before = self._done
        B, T = ids.shape
        attended = self.attended if books is self.cell.coding.codes else None  # not what the control saw

        def step(done: int, total: int) -> None:
            self._done = before + B * T * done // total
            self.step(self._done, self._total)

        if self.newest:
            name = f"{self.cell.coding.digest}{'' if books is self.cell.coding.codes else ' control'}"
            cache = self.prefills(self.lm, ids[:, : -self.newest], books, self.cache, self.backend, name)
            shift = self.fault.position_shift if self.fault else 0
            newest = ids[:, -self.newest :]
            states = decoded_states(
                self.lm, newest, cache, position_shift=shift, probe=probe, step=step, attended=attended
            )
        else:
            states = coded_states(
                self.lm,
                ids,
                books,
                self.cache,
                self.cell.mode,
                chunk_size=self.config.chunk_size,
                coded_sinks=self.cell.coded_sinks,
                sizes=self._uncounted(books),
                probe=probe,
                step=step,
                attended=attended,
            )
        step(1, 1)
        return states

    def _uncounted(self, codes: CodebookSet | Codec | None) -> CodedSizes | None:
        """Where to count the bytes of a codec's first batch; the others, and the control, take as much."""
        counted = isinstance(codes, Codec) and codes is self.cell.coding.codes and not self.sizes.elements
        return self.sizes if counted else None

    def _batches(self, tokens: np.ndarray) -> Iterator[slice]:
        """Rows of tokens (n, T) that are run together."""
        n, T = tokens.shape
        size = windows_together(self.lm, T, stepwise=self.stepwise, most=self.batch)
        for start in range(0, n, size):
            yield slice(start, start + size)

    def _memory(self) -> dict[str, Metric]:
        nbytes, bits = self._footprint(self.cell.context)
        lm = self.lm
        itemsize = torch.empty((), dtype=lm.dtype).element_size()
        exact = 2 * len(lm.coded_layers) * self.cell.context * lm.num_kv_heads * lm.head_dim * itemsize
        return {
            "code_bits": Metric(value=self._bits() or 8.0 * itemsize, unit="bits"),
            **self._bits_by_side(),
            "effective_bits": Metric(value=bits, unit="bits"),
            "cache_bytes": Metric(value=float(nbytes), unit="B"),
            "cache_bytes_exact": Metric(value=float(exact), unit="B"),
        }

    def _bits(self) -> float:
        """Of the codes, an element: as the codebooks have them, or as the codec's bytes were counted."""
        return self.sizes.bits if self.sizes.elements else self.cell.coding.bits

    def _bits_by_side(self) -> dict[str, Metric]:
        if not self.sizes.elements:
            return {}
        sides = {"key_bits": self.sizes.key_bits, "value_bits": self.sizes.value_bits}
        return {name: Metric(value=bits, unit="bits") for name, bits in sides.items()}

    def _stated_memory(self) -> list[dict[str, Any]]:
        rows = []
        for tokens in STATED_LENGTHS:
            nbytes, bits = self._footprint(tokens)
            row = {"tokens": tokens, "cache_bytes": nbytes, "effective_bits": bits, "dtype": self.config.dtype}
            rows.append(row | whole_cache(self.lm, tokens, nbytes))
        return rows

    def _footprint(self, tokens: int) -> tuple[int, float]:
        lm, of = self.lm, tokens
        if (keeper := Keeper.of(self.cache)) is not None:  # of what stood before the newest tokens
            tokens = keeper.count(tokens - self.newest) + self.newest
        itemsize = torch.empty((), dtype=lm.dtype).element_size()
        shape = len(lm.coded_layers), lm.num_kv_heads, lm.head_dim
        coding = self.cell.coding
        if coding.learnt is None:
            nbytes = footprint(tokens, self.cache, *shape, itemsize, coding.books).total
        else:  # no store holds them yet: what is coded, by the bits that were measured, and all else as it stands
            cache = self.cache
            coded = coded_len(tokens, page_size=cache.page_size, residual=cache.residual, sink_tokens=cache.sink_tokens)
            kept = footprint(tokens - coded, self.cache, *shape, itemsize, None).total
            elements = 2 * coded * shape[0] * shape[1] * shape[2]
            nbytes = kept + coding.learnt.codec.fixed_bytes() + int(elements * self._bits() / 8)
        return nbytes, effective_bits(nbytes, of, *shape)
