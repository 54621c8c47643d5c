"""`PQKVCache`: a pqkv cache that transformers takes as its `cache`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from pqkv.cache import Geometry, KVCache
from pqkv.cache.layer import Layer
from pqkv.codec import CodebookSet
from pqkv.codec.interface import Codec
from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.lm.causal import windowed_prefill
from pqkv.lm.keep import Keeper
from pqkv.lm.layers import layer_plan
from pqkv.lm.plugin import Attended, View, exact_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class PQKVCache(Cache):
    """Coded (with codebooks, or another codec to measure) or paged exact (without) cache of a transformers model made
    ready by `attach`.

        attach(model)
        cache = PQKVCache(model.config, codebooks)
        model.generate(ids, cache=cache)  # past_key_values=cache before transformers 5.24

    So do `pipeline`, assisted decoding and `torch.compile(model.forward)`, whose graph is cut around the cache. What
    assisted decoding proposes in its first step is attended to exactly, with the prompt. `cache_implementation` knows
    transformers' own names only.

    Batches may be left-padded: padding never enters the cache. Layers with sliding-window attention keep
    transformers' own exact layer; `coded_layers` says which ones pqkv serves. With a `window` in `config` these see
    through it as well, and its pages come back; with `keep` a share of the first step's tokens stays (`pqkv.lm.keep`).
    """

    def __init__(
        self,
        model_config: PreTrainedConfig,
        codebooks: CodebookSet | Codec | None = None,
        config: CacheConfig | None = None,
    ) -> None:
        plan = layer_plan(model_config)
        self.coded_layers = plan.coded
        self.attended = Attended()
        self.cache_config, self.codebooks = config or CacheConfig(), codebooks
        self.kv: KVCache | None = None  # made when the first keys tell batch, dtype and device
        super().__init__(layers=plan.build(lambda k: _Layer(self, k)))

    def core(self, keys: Tensor) -> KVCache:
        """The cache behind, made for the shape of the first keys (B, Hkv, T, D); the batch is fixed from then on."""
        B, Hkv, _, D = keys.shape
        if self.kv is None:
            books = self.codebooks
            if isinstance(books, CodebookSet) and books.num_layers != len(self.coded_layers):
                raise CacheError(
                    f"codebooks for {books.num_layers} layers, but the model has {len(self.coded_layers)} to code"
                )
            geometry = Geometry(B, Hkv, D, keys.dtype, keys.device)
            self.kv = KVCache(self.cache_config, geometry, len(self.coded_layers), books)
        if len(self.kv.layers[0].lengths) != B:
            raise CacheError(
                f"the cache holds {len(self.kv.layers[0].lengths)} sequences, the model brought {B}; "
                "use fork, batch_repeat_interleave or batch_select_indices to change the batch, or reset"
            )
        return self.kv

    def check_even(self) -> None:
        """Raise `CacheError` if a step was interrupted between two layers: what follows would attend to other tokens
        in each of them.
        """
        if len({self.layers[i].columns for i in self.coded_layers}) > 1:
            raise CacheError("a step was interrupted between two layers; reset the cache")

    def fork(self, sequence: int) -> int:
        """Append a sequence that continues from `sequence`, sharing its sealed pages; returns its index."""
        if self.kv is None:
            raise CacheError("nothing to fork: the cache is empty")
        count = len(self.kv.layers[0].lengths)
        self._select([*range(count), sequence])
        return count

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: pages move once, in the table, not once a layer."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times; pages are shared."""
        if self.kv is not None:
            count = len(self.kv.layers[0].lengths)
            self._select([b for b in range(count) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these sequences."""
        self._select(indices.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest -tokens_to_remove tokens of every sequence, as transformers' `crop` does.

        Raises `CacheError`, with nothing changed, where that reaches into sealed pages or padding.
        """
        if tokens_to_remove > 0:
            raise CacheError(f"crop takes the tokens to remove as a negative number, not {tokens_to_remove}")
        if tokens_to_remove == 0 or self.kv is None:
            return
        served = [self.layers[i] for i in self.coded_layers]
        columns, padding = served[0].columns + tokens_to_remove, served[0].padding or []
        if columns < max(padding, default=0):
            raise CacheError(f"cannot crop {-tokens_to_remove} of {served[0].columns} tokens, padding included")
        for i, layer in enumerate(self.layers):
            if i not in self.coded_layers and layer.get_seq_length() >= getattr(layer, "sliding_window", columns + 1):
                raise CacheError(f"cannot crop: the sliding window of layer {i} has forgotten what stood before it")
        # what a policy kept of a prefill is shorter than it was
        self.kv.crop([max(0, n + tokens_to_remove) for n in self.kv.layers[0].lengths])
        for layer in self.layers:
            layer.crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything; the next batch may have another size."""
        if self.kv is not None:
            self.kv.reset()
            self.kv = None
        for layer in self.layers:
            layer.reset()

    def _select(self, sequences: Sequence[int]) -> None:
        if self.kv is None:
            return
        index = torch.tensor(list(sequences), dtype=torch.long, device=self.kv.geometry.device)
        self.kv.select(sequences)
        for layer in self.layers:
            layer.batch_select_indices(index)


class _Layer(CacheLayerMixin):
    """Counts columns for transformers' masks and hands out views; tokens live in the cache behind."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, owner: PQKVCache, index: int) -> None:
        super().__init__()
        self.owner, self.index = owner, index
        self.columns = 0  # with padding, as transformers counts
        self.padding: list[int] | None = None  # of each sequence, known after the first step

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @torch.compiler.disable
    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[View, View]:
        self.lazy_initialization(key_states, value_states)
        if self.index == 0:
            self.owner.check_even()
        with _outliving_inference():
            layer = self.owner.core(key_states).place(self.index, key_states.device)
        view = _StepView(self, layer, key_states, value_states)
        return view, view

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        self.columns += tokens_to_remove

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.padding is not None:
            self.padding = [self.padding[i] for i in indices.tolist()]

    def reset(self) -> None:
        self.columns, self.padding, self.is_initialized = 0, None, False


class _StepView(View):
    """One step of one layer: the cache as it was, and the new tokens."""

    def __init__(self, owner: _Layer, layer: Layer, keys: Tensor, values: Tensor) -> None:
        super().__init__(owner.owner.attended)
        self.owner, self.layer, self.new_keys, self.new_values = owner, layer, keys, values

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        """Prefill into an empty cache is exact attention on what was just computed; every later step runs on pages.

        The columns count only once the tokens are cached: a step that raises can be taken again.
        """
        owner, new = self.owner, self.new_keys.shape[2]
        padding = _left_padding(mask, owner.columns + new, query.shape[:3:2], window)
        before, coded = self.layer.lengths, self.layer.coded
        rows = [new] * len(before)
        if owner.padding is None:
            rows = [new - pad for pad in padding]
            out = self._prefill(module, query, mask, padding, scale)
            owner.padding = padding
        elif padding != owner.padding:
            raise CacheError(
                "the attention mask of this step hides tokens that were cached as real; pass the same padding"
            )
        else:
            with _outliving_inference():
                out = self.layer.attend(
                    query.transpose(1, 2), self.new_keys, self.new_values, scale=scale, window=window
                )
        owner.columns += new
        self.attended.saw(before, coded, rows, self.layer.window, owner.owner.cache_config.sink_tokens)
        return out

    def _prefill(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, padding: list[int], scale: float
    ) -> Tensor:
        """Attention among the first tokens, through the window if there is one; what is kept of them is cached."""
        keys, values, layer = self.new_keys, self.new_values, self.layer
        if layer.window is None:
            out = exact_attention(module, query, keys, values, mask, scale)
        else:
            out = windowed_prefill(query, keys, values, padding, layer.window, scale)
        keeper = Keeper.of(self.owner.owner.cache_config)
        with _outliving_inference():
            if keeper is None:
                layer.append(keys, values, padding)
            else:
                layer.append(*keeper(query, keys, values, padding, scale, self.owner.index))
        return out


@contextmanager
def _outliving_inference() -> Iterator[None]:
    """What a step in inference mode keeps is changed in place by later ones, which may not be in that mode."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _left_padding(mask: Tensor | None, columns: int, shape: Sequence[int], window: int | None) -> list[int]:
    """Hidden columns on the left of each sequence, for queries of `shape` (B, T) that are the newest of `columns`.

    Raises `CacheError` for a mask that is anything but causal with left padding.
    """
    batch, new = shape
    if mask is None:
        return [0] * batch
    visible = mask[..., :columns].expand(batch, -1, -1, -1)  # (B, 1 or Hq, T, columns)
    if mask.dtype != torch.bool:
        visible = visible == 0  # an additive mask
    first = columns - visible[:, 0, -1].sum(-1)  # the newest token sees all that is real
    column = torch.arange(columns, device=mask.device)
    position = column[columns - new :, None]
    expected = (column <= position) & (column >= first[:, None, None])  # (B, T, columns)
    real = position >= first[:, None, None]  # (B, T, 1): what padding sees is nobody's business
    if window is not None or not torch.equal(visible & real[:, None], expected[:, None].expand_as(visible)):
        raise CacheError("only causal attention with left padding runs on a pqkv cache; other masks are not supported")
    return [int(pad) for pad in first.tolist()]
