"""Text as it is written: whole words, as soon as no later token can change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TextStreamer


class TextStream(TextStreamer):
    """Gives `say` the text of tokens piece by piece; the pieces together are the text of all tokens."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:  # noqa: ANN401 - transformers' own
        super().__init__(tokenizer)
        self._say = say

    def hear(self, token: int) -> None:
        """The next token."""
        self.put(torch.tensor([token]))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """transformers' hook for text that will not change any more."""
        if text:
            self._say(text)
