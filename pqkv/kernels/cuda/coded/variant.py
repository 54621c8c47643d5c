"""What the kernel of coded attention is compiled for, and the sizes that follow: tokens of a thread, subspaces whose
tables are in shared memory at a time, words of everything that lies there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pqkv.kernels.cuda.codes import Codes
from pqkv.kernels.cuda.exact import SHARED_BYTES
from pqkv.kernels.cuda.steps import KeyStep, ValueStep
from pqkv.kernels.turns import BLOCK as TURN
from pqkv.kernels.turns import POLYNOMIALS

_ROW_TOKENS = 4  # tokens of a thread where keys lie in rows
_LANES = 32
_L2_BYTES = 39  # that a multiprocessor gets from the second-level cache in a clock
_KEY_WAVEFRONTS = 3.2  # of a load by lanes whose codes are drawn at random

Phase = Literal["tables", "scores", "softmax", "values"]


@dataclass(frozen=True, slots=True)
class CodedVariant:
    """What the kernel is compiled for. With a `last` phase before that of values it ends there, to be timed: a word of
    every thread goes where values would, so that no phase is left out as useless.

    `turning`: scores get a bias by position, from phasors that turn. `gains`: so do weights of values a factor.
    `query`: the type of the query that coded keys are scored with. `uneven`: blocks of `group` heads do not divide
    those of a KV head. `blocks`: as `ExactVariant` has it.
    """

    group: int
    keys: Codes
    values: Codes
    block: int = 128
    last: Phase = "values"
    turning: bool = False
    gains: bool = False
    query: str = "float16"
    uneven: bool = False
    blocks: int | None = None

    @property
    def decodes(self) -> bool:
        """Whether keys are looked up as centroids: no more words than tables of all query heads have, and they need
        only be copied. But one word of two heads' sums is one addition for both.
        """
        words, table = self.keys.centroid_words, self._table_words
        return words < table or (words == table and self.group != 2)

    @property
    def _table_words(self) -> int:
        return 1 if self.group == 1 else (self.group + 1) // 2

    @property
    def entry_words(self) -> int:
        """32-bit words of a key's table entry."""
        return self.keys.centroid_words if self.decodes else self._table_words

    @property
    def key_tokens(self) -> int:
        """Tokens of a thread in the key phase."""
        return _ROW_TOKENS if self.keys.layout == "row" else max(8, self.keys.period)

    @property
    def value_tokens(self) -> int:
        """Tokens whose value codes are read at once."""
        return 8 if self.values.layout == "row" else max(16, self.values.period)

    @property
    def tokens(self) -> int:
        """Of one block at most."""
        return self.block * self.key_tokens // self.together * self.together

    @property
    def together(self) -> int:
        """Tokens that a stretch middles at a multiple of: they are read at once and lie in one page."""
        return max(self.key_tokens, self.value_tokens)

    @property
    def stages(self) -> tuple[int, int]:
        """Subspaces whose tables are in shared memory at a time, of keys and of values; 0 where not one fits."""
        room = SHARED_BYTES - self._fixed_bytes
        keys, values = self.keys, self.values
        return (
            _stage(keys.num_subspaces, 4 * keys.entries * self.entry_words, room),
            # a lane owns one subspace
            _stage(values.num_subspaces, 4 * values.entries * values.centroid_words, room, min(self.block, _LANES)),
        )

    @property
    def key_step(self) -> KeyStep:
        """What a thread does between two readings of key codes."""
        row, words = self.keys.layout == "row", self.keys.centroid_words
        period = self.keys.period
        subspaces = 4 if not row else 2 * period if self.stages[0] % (2 * period) == 0 else period
        flush = max(1, 4 // words) if self.decodes else 4
        return KeyStep(
            self.key_tokens, subspaces, self.keys.nbits, row, self.keys.entries, self.entry_words, self.group,
            self.decodes, flush,
        )  # fmt: skip

    @property
    def value_step(self) -> ValueStep:
        """What a thread does between two readings of value codes."""
        values = self.values
        return ValueStep(
            self.value_tokens, values.nbits, values.layout == "row", values.entries, values.centroid_words,
            values.d_sub, self.stages[1], self.group,
        )  # fmt: skip

    @property
    def teams(self) -> int:
        """Teams of threads that share a stretch's tokens in the value phase, a thread for each subspace of a stage."""
        return self.block // max(1, self.stages[1])

    @property
    def full_warps(self) -> bool:
        """Whether all lanes of a block's warps exist, so that they can exchange."""
        return self.block % 32 == 0

    @property
    def packed_words(self) -> int:
        """Words of the query in fp16."""
        return self.group * self.keys.num_subspaces * self.keys.centroid_words

    @property
    def table_words(self) -> int:
        """Words of the shared table: that of keys, that of values, the partial sums of all teams, or what polynomials
        are weighted with in the bias.
        """
        keys, values = self.stages
        sums = self.teams * self.group * values * self.values.d_sub
        return max(
            keys * self.keys.entries * self.entry_words,
            values * self.values.entries * self.values.centroid_words,
            sums,
            POLYNOMIALS * self._turned_words if self.turning else 0,
        )

    @property
    def turned_blocks(self) -> int:
        """Blocks of `turns` that a stretch lies in at most."""
        return (TURN - self.together + self.tokens - 1) // TURN + 1

    @property
    def _turned_words(self) -> int:
        """Words that one row of turns is weighted with, for all blocks and heads."""
        return self.turned_blocks * self.group

    @property
    def turned_pairs(self) -> int:
        """Fast pairs, of two rows each, whose weights fit the shared table at a time."""
        return self.table_words // self._turned_words // 2

    @property
    def weight_words(self) -> int:
        """Words that hold the softmax weights of one token: two heads a word, one head twice in a word."""
        return (self.group + 1) // 2

    @property
    def weight_room(self) -> int:
        """Words that hold the weights of all tokens of a block."""
        return self.block * self.key_tokens * self.weight_words

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.keys.num_subspaces * self.keys.d_sub

    @property
    def build_tokens(self) -> float:
        """How many tokens are looked up in the time that the tables of all subspaces take to copy, as A100 and H100
        are documented and 32 lanes meet in banks at 256 entries: for `choose_coded_splits`, not for predictions.
        """
        keys, values = self.keys, self.values
        copied = sum(4 * c.num_subspaces * c.entries * c.centroid_words for c in (keys, values)) / _L2_BYTES
        read = keys.num_subspaces * self.entry_words * _KEY_WAVEFRONTS + values.num_subspaces * values.centroid_words
        return copied / (read / _LANES)

    @property
    def _fixed_bytes(self) -> int:
        words = self.weight_room + self.group * self.head_dim + self.packed_words + self.block * self.group
        return 4 * words

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self._fixed_bytes + 4 * self.table_words

    def obstacle(self, page_size: int) -> str | None:
        """Why this kernel cannot serve the variant on such pages, or None."""
        if page_size % self.together:
            return f"{self.together} tokens are read at once, which does not divide pages of {page_size}"
        for name, codes, line in (("keys", self.keys, self.keys.num_subspaces), ("values", self.values, 32)):
            if (line if codes.layout == "row" else page_size) * codes.nbits % 32:
                return f"a line of {name} is no whole number of 32-bit words"
        if min(self.stages) < 1 or self.stages[0] % self.key_step.subspaces:
            return "the tables of too few subspaces fit shared memory"
        if self.stages[1] * self.values.entries * self.values.centroid_words % 4:
            return "centroids are copied four words at a time"
        if not self.tokens:
            return f"a block of {self.block} threads takes fewer than {self.together} tokens"
        return None if self.shared_bytes <= SHARED_BYTES else "weights and partial sums do not fit shared memory"


def coded_variant(group: int, keys: Codes, values: Codes, **beside: Any) -> CodedVariant:
    """The variant, `beside` as its other fields have it, with the block that serves `group` query heads: their scores
    must fit a thread's registers. Two heads leave room for a large block, which reads more tokens by the same tables.
    """
    usual, large = (CodedVariant(group, keys, values, block, **beside) for block in (64 if group > 4 else 128, 256))
    return large if group <= 2 and large.stages == usual.stages else usual


def _stage(subspaces: int, bytes_each: int, room: int, most: int | None = None) -> int:
    """The largest power-of-two fraction of `subspaces`, at most `most`, whose tables fit `room` bytes; 0 if none."""
    count = subspaces
    while count * bytes_each > room or (most is not None and count > most):
        if count % 2:
            return 0
        count //= 2
    return count
