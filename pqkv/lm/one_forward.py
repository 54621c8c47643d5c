"""Cache layers that live for one forward over an empty past: what is captured, simulated or rounded needs no steps."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from pqkv.lm.plugin import Attended


class OneForwardLayer(CacheLayerMixin):
    """What transformers asks of a layer that keeps no tokens; `update`, which hands out a view, is the subclass's."""

    def __init__(self, attended: Attended) -> None:
        super().__init__()
        self.attended = attended

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to allocate."""
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """No token is kept."""
        return 0

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The columns are those of the forward itself."""
        return query_length, 0
