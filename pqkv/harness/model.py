"""The harness's model `pqkv`: its own `hf`, with continuations scored and texts generated on coded caches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor

from pqkv import __version__
from pqkv.errors import CacheError, ConfigError
from pqkv.harness.answers import own_table
from pqkv.harness.coded_model import CodedModel
from pqkv.harness.config import HarnessConfig
from pqkv.harness.scoring import Answer, Scored, score
from pqkv.harness.shares import Seen, check_coded
from pqkv.lm.rope import forget_lengths
from pqkv.lm.step import cache_argument

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook

_LOG = logging.getLogger("lm_eval.models.pqkv")  # among the harness's own lines


class PQKVLM(HFLM):
    """A model on coded caches. `arguments` are those of `HarnessConfig`; the others are those of `hf`.

    A request's own row is what the cache would give it: padding, if any, stands behind it and is not seen. `shares`
    holds, by kind of request and task, how much of what was seen was codes; a run without any is refused.
    """

    def __init__(
        self,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        **arguments: Any,  # noqa: ANN401 - validated by the configuration
    ) -> None:
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size {batch_size}: pqkv takes a number of sequences, such as --batch_size 8")
        self.coded = CodedModel.load(HarnessConfig.of(_placed(arguments)))
        super().__init__(
            pretrained=self.coded.lm.model,
            tokenizer=self.coded.lm.tokenizer,
            backend="causal",
            batch_size=int(batch_size),
            max_length=max_length,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            think_end_token=think_end_token,
            enable_thinking=enable_thinking,
            chat_template_args=chat_template_args,
        )
        self.shares: dict[str, dict[str, Seen]] = {}
        self._seen = Seen()  # of the task whose texts are generated

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Answers go into, and come from, a table of this model and coding."""
        if cache_hook.dbdict is not None:
            own_table(cache_hook.dbdict, self.coded.identity())
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """As `hf` answers it, on coded caches."""
        if self.enable_thinking:
            raise ConfigError("enable_thinking is for tasks that generate; leave it out of these")
        wanted = [self._scored(*request.args) for request in requests]
        self._count("loglikelihood", [request.task_name for request in requests], wanted)

        def done(number: int, answer: Answer) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[number].args, answer)

        return score(self.coded, wanted, self.batch_size, done)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As `hf` answers it, on coded caches: windows of the model's length, every token predicted once."""
        wanted, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for before, predicted in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            ):
                wanted.append(Scored(tuple(before), tuple(predicted)))
                owners.append(number)
        self._count("loglikelihood_rolling", [requests[number].task_name for number in owners], wanted)
        totals = [0.0] * len(requests)
        for number, (log_p, _) in zip(owners, score(self.coded, wanted, self.batch_size, lambda *_: None), strict=True):
            totals[number] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As `hf` generates, on the real cache; a task at a time, as each has a share of its own."""
        shares = self.shares.setdefault("generate_until", {})
        texts = [""] * len(requests)
        for task in dict.fromkeys(request.task_name for request in requests):
            own = [number for number, request in enumerate(requests) if request.task_name == task]
            self._seen = shares.setdefault(str(task), Seen())
            found = super().generate_until([requests[number] for number in own], disable_tqdm)
            for number, text in zip(own, found, strict=True):
                texts[number] = text
        self._tell("generate_until")
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model, its coding and the share of coded columns."""
        coded, config = self.coded, self.coded.config
        kinds = {kind: {task: seen.summary() for task, seen in found.items()} for kind, found in self.shares.items()}
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(coded.lm.dtype).removeprefix("torch."),
            "model_revision": coded.lm.fingerprint,
            "model_sha": "",
            "pqkv": {
                "version": __version__,
                "model": coded.lm.name,
                "code_bits": coded.coding.bits,
                "coding": coded.coding.label,
                "codes": coded.coding.digest,
                "identity": coded.identity(),
                **config.model_dump(mode="json", exclude={"pretrained", "bits"}),
                "modes": {kind: self._mode(kind) for kind in kinds},
                "coded_columns": kinds,
            },
        }

    def _mode(self, kind: str) -> str:
        """How requests of a kind met the cache."""
        if kind == "generate_until":
            return "cache"
        return "exact" if self.coded.codes is None else self.coded.config.mode

    def _scored(self, context: str, continuation: str) -> Scored:
        """The token ids of a request, as the harness parts them; without a context behind what begins a sequence."""
        if context:
            before, behind = self._encode_pair(context, continuation)
            return Scored.of(before, behind, self.max_length)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        begins = ids[:1] == [self.prefix_token_id]
        return Scored.of(ids[:1] if begins else [self.prefix_token_id], ids[1:] if begins else ids, self.max_length)

    def _count(self, kind: str, tasks: Sequence[str | None], wanted: Sequence[Scored]) -> None:
        """Count what the rows of `wanted` will see, before hours of forwards on none of it coded."""
        shares = self.shares.setdefault(kind, {})
        known: dict[int, float] = {}
        for task, one in zip(tasks, wanted, strict=True):
            n = len(one.ids)
            if n not in known:
                known[n] = self.coded.share(n)
            shares.setdefault(str(task), Seen()).add(n * (n + 1) // 2, known[n] * (n * (n + 1) // 2))
        self._tell(kind)

    def _tell(self, kind: str) -> None:
        """Say what share of the columns of each task was coded. Raises `ConfigError` where none was."""
        shares = self.shares[kind]
        for task in check_coded(shares, self.coded.config, generated=kind == "generate_until"):
            _LOG.warning("%s: nothing was coded, its figures are the exact cache's", task)
        for task, seen in shares.items():
            _LOG.info(
                "%s: %.1f%% of the columns that rows see are codes, in %d of %d requests any",
                *(task, 100 * seen.share, seen.touched, seen.requests),
            )

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **more: Any) -> Tensor:  # noqa: ANN401 - generate's own
        """`generate` on a cache made for these prompts (B, T), padded on the left."""
        cache = self.coded.cache()
        forget_lengths(self.model)
        found: Tensor = super()._model_generate(context, max_length, stop, **cache_argument(self.model, cache), **more)
        used, layers = cache.attended, len(cache.coded_layers)
        if not used.calls or used.calls % layers:
            raise CacheError(
                f"generate attended {used.calls} times through the cache, which is not once a step in each of its "
                f"{layers} coded layers: no text of it would be the cache's; see pqkv env for versions"
            )
        lengths = more["attention_mask"].sum(-1).tolist()
        prefill = layers * sum(n * (n + 1) // 2 for n in lengths)  # exact, whatever the cache
        batch = len(lengths)
        for _ in lengths:  # one share for all: they decoded together
            self._seen.add(max(0, used.columns - prefill) // batch, used.coded_columns / batch)
        return found


def _placed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The harness asks for a GPU where nothing is said; as with `hf`, the CPU takes its place where there is none."""
    if str(arguments.get("device")).startswith("cuda") and not torch.cuda.is_available():
        _LOG.info("no CUDA device: %s runs on the CPU", arguments.get("pretrained", "the model"))
        return {**arguments, "device": "cpu"}
    return arguments
