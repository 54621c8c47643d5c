"""The training loop: short resumable steps, checkpoints written whole, one line of log a report."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pqkv.errors import ConfigError, ModelError
from refmodel.batches import Batches
from refmodel.optim import optimizers
from refmodel.recipe import Recipe

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
Losses = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_LOSS_ROWS = 16384  # rows of logits at a time: their float32 copy stays small


def new_model(recipe: Recipe, init_from: Path | None) -> LlamaForCausalLM:
    """The recipe's model with random weights, or the weights in `init_from`, which must have the recipe's shape."""
    torch.manual_seed(recipe.seed)
    shape = recipe.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=shape.positions, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    if init_from is None:
        return LlamaForCausalLM(config)
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(init_from, dtype=torch.float32)
    for field in ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                  "num_attention_heads", "num_key_value_heads", "head_dim", "rope_parameters",
                  "max_position_embeddings", "tie_word_embeddings"):  # fmt: skip
        if (theirs := getattr(model.config, field)) != (ours := getattr(config, field)):
            raise ConfigError(f"{init_from.name} has {field} = {theirs}, the recipe {ours}: choose the recipe it fits")
    return model


def train(
    recipe: Recipe,
    batches: Batches,
    folder: Path,
    *,
    device: str = "cpu",
    minutes: float | None = None,
    stop_at: int | None = None,
    micro_tokens: int = 1 << 17,
    init_from: Path | None = None,
    checkpoint_minutes: float = 5,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
) -> tuple[LlamaForCausalLM, int]:
    """Train from the checkpoint in `folder`, or from the start, until the recipe, `stop_at` or the minutes end.

    Returns the model and the number of steps done. A checkpoint of another recipe is refused.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device '{device}' cannot be used: torch finds no GPU (try --device cpu)")
    torch.set_float32_matmul_precision("high")
    model = new_model(recipe, init_from).to(device).train()
    opts = optimizers(model, recipe.muon_lr, recipe.adam_lr)
    done = _resume(folder, recipe, model, opts)
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2))
    end = min(recipe.steps, stop_at if stop_at is not None else recipe.steps)
    cuda = device.startswith("cuda")
    loss_of = torch.compile(_losses, dynamic=False) if cuda else _losses
    autocast = torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()
    started = saved = time.monotonic()
    loader = _loader(batches, done, end, workers=8 if cuda else 0)
    with (folder / LOG).open("a") as log:
        for step, (ids, answers) in zip(range(done, end), loader, strict=True):
            for opt, lr in zip(opts, (recipe.muon_lr, recipe.adam_lr), strict=True):
                opt.param_groups[0]["lr"] = lr * recipe.rate(step)
            begun = time.monotonic()
            figures = _step(model, loss_of, ids.to(device), answers.to(device), recipe.answer_weight, micro_tokens,
                            autocast)  # fmt: skip
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            done = step + 1
            if step % 10 == 0 or done == recipe.steps:
                text, answer, right = figures.tolist()
                rate = ids[:, 1:].numel() / (time.monotonic() - begun)
                line = {
                    "step": step, "stage": recipe.stages[recipe.stage_of(step)[0]].name, "text_loss": round(text, 4),
                    "answer_loss": round(answer, 4), "answer_tokens_right": round(right, 4),
                    "tokens_per_s": round(rate), "minutes": round((time.monotonic() - started) / 60, 2),
                }  # fmt: skip
                log.write(json.dumps(line) + "\n")
                log.flush()
                report(line)
            now = time.monotonic()
            over = minutes is not None and now - started > 60 * minutes
            if over or done == end or now - saved > 60 * checkpoint_minutes:
                _save(folder, recipe, model, opts, done)
                saved = now
            if over:
                break
    return model, done


def _step(
    model: LlamaForCausalLM, loss_of: Losses, ids: Tensor, answers: Tensor, answer_weight: float, micro_tokens: int,
    autocast: AbstractContextManager[None],
) -> Tensor:  # fmt: skip
    """Gradients of one batch, accumulated; returns (mean loss of text, of answers, share of answer tokens right)."""
    rows = max(1, micro_tokens // (ids.shape[1] - 1))
    weights = torch.where(answers[:, 1:], answer_weight, 1.0)
    total = weights.sum()
    sums = torch.zeros(3, device=ids.device)
    for part in range(0, len(ids), rows):
        chosen = slice(part, part + rows)
        with autocast:
            hidden = model.model(input_ids=ids[chosen, :-1], use_cache=False).last_hidden_state
        # The logits of all rows would be the largest tensor by far, so their gradient is gathered piece by piece.
        cut = hidden.detach().requires_grad_()
        flat, targets = cut.flatten(0, 1), ids[chosen, 1:].flatten()
        mask, weight = answers[chosen, 1:].flatten(), weights[chosen].flatten()
        for at in range(0, len(targets), _LOSS_ROWS):
            piece = slice(at, at + _LOSS_ROWS)
            with autocast:
                loss, right = loss_of(flat[piece], model.lm_head.weight, targets[piece])
            ((loss * weight[piece]).sum() / total).backward()
            with torch.no_grad():
                m = mask[piece]
                sums += torch.stack([(loss * ~m).sum(), (loss * m).sum(), (right & m).sum().float()])
        hidden.backward(cut.grad)
    count = answers[:, 1:].sum()
    return sums / torch.stack([(~answers[:, 1:]).sum(), count.clamp(min=1), count.clamp(min=1)])


def _losses(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (N,) in float32 and whether the arg-max is right, of hidden states (N, hidden)."""
    logits = nn.functional.linear(hidden, head).float()
    return nn.functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def _loader(batches: Batches, start: int, end: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(
        DataLoader(
            batches, batch_size=None, sampler=range(start, end), num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
    )  # fmt: skip


def _save(folder: Path, recipe: Recipe, model: LlamaForCausalLM, opts: list[Any], done: int) -> None:
    state = {"recipe": recipe.digest(), "step": done, "model": model.state_dict()}
    state["optimizers"] = [opt.state_dict() for opt in opts]
    temporary = folder / f"{CHECKPOINT}.tmp"
    torch.save(state, temporary)
    temporary.replace(folder / CHECKPOINT)


def _resume(folder: Path, recipe: Recipe, model: LlamaForCausalLM, opts: list[Any]) -> int:
    path = folder / CHECKPOINT
    if not path.exists():
        (folder / LOG).unlink(missing_ok=True)
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} is damaged or no checkpoint: delete it to start again") from error
    if not isinstance(state, dict) or state.get("recipe") != recipe.digest():
        raise ConfigError(f"{path} is of another recipe or seed: continue with its own, or give another --out")
    model.load_state_dict(state["model"])
    for opt, kept in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(kept)
    done: int = state["step"]
    _cut_log(folder / LOG, done)
    return done


def _cut_log(path: Path, done: int) -> None:
    """Lines of steps after the checkpoint, whose work was lost, go."""
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < done] if path.exists() else []
    path.write_text("".join(line + "\n" for line in lines))
