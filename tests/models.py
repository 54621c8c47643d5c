"""Tiny random models, codebooks without training, and the brute force that tests of `lm` and `quality` compare with."""

from __future__ import annotations

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from pqkv.codec import Codebook, CodebookSet
from pqkv.lm.capture import capture
from pqkv.lm.load import describe
from pqkv.lm.step import cache_argument

VOCABULARY = 97


def tiny_model(family="llama", *, dtype=torch.float64, seed=0, **more):
    """A random model whose attention is far from uniform: initializer_range 0.2 spreads scores over units."""
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**settings, **more})
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def tiny_lm(family="llama", **more):
    return describe(f"tiny-{family}", tiny_model(family, **more), None)


def random_ids(length, *, batch=1, seed=0):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def sampled_books(lm, num_subspaces=8, nbits=8, *, seed=0):
    """Centroids that are captured vectors, a random order of channels, and uneven weights for the keys."""
    generator = torch.Generator().manual_seed(seed)
    samples = capture(lm, random_ids(512, seed=99).numpy(), 512, seed)

    def book(vectors, weights):
        heads, count, head_dim = vectors.shape
        channels = torch.stack([torch.randperm(head_dim, generator=generator) for _ in range(heads)])
        ordered = vectors.gather(-1, channels[:, None].expand_as(vectors)).unflatten(-1, (num_subspaces, -1))
        drawn = [
            torch.stack(
                [ordered[h, torch.randperm(count, generator=generator)[: 2**nbits], m] for m in range(num_subspaces)]
            )
            for h in range(heads)
        ]
        return Codebook(torch.stack(drawn), channels, None if weights is None else weights.gather(-1, channels))

    return CodebookSet(
        tuple(book(keys, queries) for keys, queries in zip(samples.keys, samples.queries, strict=True)),
        tuple(book(values, None) for values in samples.values),
    )


def restored(book, vectors):
    """Decoded vectors (B, Hkv, T, D), by the definition: per head and subspace, the centroid of least distance."""
    out = torch.empty_like(vectors)
    heads, subspaces, _, d_sub = book.centroids.shape
    for h in range(vectors.shape[1]):
        own = h % heads
        for m in range(subspaces):
            part = slice(m * d_sub, (m + 1) * d_sub)
            channels = torch.arange(vectors.shape[-1])[part] if book.channels is None else book.channels[own, part]
            weights = torch.ones(d_sub) if book.weights is None else book.weights[own, part]
            centroids = book.centroids[own, m].to(vectors.dtype)
            gaps = (vectors[:, h, :, None, channels] - centroids) * weights.to(vectors.dtype)  # (B, T, C, d_sub)
            out[:, h, :, channels] = centroids[gaps.square().sum(-1).argmin(-1)]
    return out


def sealed(cached, config):
    """Coded tokens after `cached` single steps, by playing the window through: full, it gives up its oldest page."""
    coded = 0
    for n in range(1, cached + 1):
        if n - config.sink_tokens - coded >= config.residual:
            coded += config.page_size
    return coded


class _RestoringLayer(DynamicLayer):
    """transformers' own layer, except that the coded columns are handed out decoded."""

    def __init__(self, books, columns):
        super().__init__()
        self.books, self.columns, self.decoded = books, columns, [None, None]

    def update(self, key_states, value_states, *args, **kwargs):
        before = self.get_seq_length()
        exact = super().update(key_states, value_states)
        first, end = self.columns(before, exact[0].shape[2])
        for i, (book, full) in enumerate(zip(self.books, exact, strict=True)):
            old = self.decoded[i]
            known = 0 if old is None else old.shape[2]
            if first + known < end:
                new = restored(book, full[:, :, first + known : end])
                self.decoded[i] = new if old is None else torch.cat([old, new], 2)
        if first >= end:
            return exact
        return tuple(
            torch.cat([full[:, :, :first], part[:, :, : end - first], full[:, :, end:]], 2)
            for full, part in zip(exact, self.decoded, strict=True)
        )


def untouched(model):
    """A copy of the model under transformers' own sdpa attention (its eager one takes the softmax in float32)."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    return plain


def stepwise(model, ids, cache, size=1):
    """Logits of `size` tokens a step."""
    with torch.inference_mode():
        parts = [
            model(ids[:, i : i + size], **cache_argument(model, cache)).logits for i in range(0, ids.shape[1], size)
        ]
    return torch.cat(parts, 1)


def brute_cache(books, config, model_config=None):
    """A cache of exact vectors that hands out decoded what was coded before a step; with the configuration of a hybrid
    model its sliding layers are transformers' own.
    """
    return _restoring(
        books, lambda before, _: (config.sink_tokens, config.sink_tokens + sealed(before, config)), model_config
    )


def brute_coded(lm, ids, books, config, size=1):
    """`size` tokens a step under sdpa with `brute_cache`."""
    return stepwise(untouched(lm.model), ids, brute_cache(books, config), size)


def brute_all_coded(lm, ids, books):
    """One plain forward in which every key and value is the decoded one."""
    return stepwise(untouched(lm.model), ids, _restoring(books, lambda _, total: (0, total)), ids.shape[1])


def _restoring(books, columns, model_config=None):
    layers = [_RestoringLayer(pair, columns) for pair in zip(books.keys, books.values, strict=True)]
    if model_config is None:
        return Cache(layers=layers)
    own = DynamicCache(config=model_config).layers
    rest = iter(layers)
    return Cache(layers=[layer if layer.is_sliding else next(rest) for layer in own])


def left_padded_positions(lengths):
    """Random ids and the mask of a left-padded batch."""
    longest = max(lengths)
    rows = [random_ids(n, seed=n) for n in lengths]
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(row, (longest - row.shape[1], 0)) for row in rows])
    return ids, torch.cat([pad(torch.ones_like(row), (longest - row.shape[1], 0)) for row in rows])


def dynamic_logits(model, ids, size=None):
    """What transformers gives with its own cache."""
    plain = untouched(model)
    return stepwise(plain, ids, DynamicCache(config=plain.config), size or ids.shape[1])


def masked_tail(model, ids, prefix, kept):
    """Logits of ids (1, n) from `prefix` on, of whose first tokens those see only `kept`: transformers under a mask."""
    n = ids.shape[1]
    rows, columns = torch.arange(n)[:, None], torch.arange(n)
    seen = columns <= rows
    hidden = torch.ones(n, dtype=torch.bool)
    hidden[list(kept)] = False
    hidden[prefix:] = False
    seen &= ~(hidden & (rows >= prefix))
    mask = torch.where(seen, 0.0, float("-inf")).to(torch.float64)[None, None]
    with torch.inference_mode():
        return untouched(model)(ids, attention_mask=mask).logits[:, prefix:]


def gap(a, b):
    """Largest absolute difference; NaN if there is one."""
    return float((a - b).detach().abs().max())


def write_corpus(folder, documents, *, words=400, seed=0):
    """Files of made-up prose, each long enough to identify itself; returns the folder."""
    import random

    folder.mkdir(parents=True, exist_ok=True)
    for name in documents:
        draw = random.Random(f"{seed} {name}")
        text = " ".join(draw.choice(WORDS.split()) for _ in range(words))
        (folder / name).write_text(f"{name}. {text}.\n", encoding="utf-8")
    return folder


WORDS = "the old river runs past a mill where seven people keep bread and letters for winter in their own way"
