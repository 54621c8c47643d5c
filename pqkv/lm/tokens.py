"""From text to the token ids a model is given: control tokens, the beginning of a sequence, ids that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pqkv.config import Bos
from pqkv.errors import DataError, ModelError
from pqkv.lm.chat import ChatTemplate, chat_template
from pqkv.lm.model import LanguageModel
from pqkv.text import Corpus, TokenStream, tokenize

_EMPTY_LINE = "\n\n"


@dataclass(frozen=True, slots=True)
class TokenForm:
    """How text becomes the tokens of a model: `bos` is the id that begins every window, None for no such token;
    strings of control tokens are control tokens where `parse_special` says so, and text otherwise; with `chat` a window
    is one conversation in that template.
    """

    bos: int | None = None
    parse_special: bool = False
    chat: ChatTemplate | None = None

    @property
    def opening(self) -> tuple[int, ...]:
        """Ids in front of the text of a window."""
        return (() if self.bos is None else (self.bos,)) + (() if self.chat is None else self.chat.before)

    @property
    def template_tokens(self) -> int:
        """Tokens of a conversation that are not text."""
        return 0 if self.chat is None else len(self.opening) + len(self.chat.between)


def token_form(lm: LanguageModel, bos: Bos, *, parse_special: bool, chat: bool = False) -> TokenForm:
    """What `--bos`, `--parse-special` and `--chat` mean for this model. `auto` does as its tokenizer does by itself, in
    a conversation as its template does; that a template begins a sequence as well makes no second beginning.

    Raises `ModelError` where a beginning is asked for and the tokenizer has none, and what `chat_template` raises.
    """
    token = getattr(lm.tokenizer, "bos_token_id", None)
    if chat:
        return _conversation_form(lm, bos, token)
    if bos == "auto":
        given = lm.tokenizer("a", verbose=False)["input_ids"]
        token = token if token is not None and given[:1] == [token] else None
    elif bos == "never":
        token = None
    elif token is None:
        raise ModelError(_no_beginning(lm))
    if token is not None:
        check_ids(lm, np.array([token]), f"the beginning-of-sequence token of {lm.name}")
    return TokenForm(token, parse_special)


def _conversation_form(lm: LanguageModel, bos: Bos, token: int | None) -> TokenForm:
    """The template of `lm`, its beginning of sequence apart: the same ids are the same form, whoever put them there."""
    if bos == "always" and token is None:
        raise ModelError(_no_beginning(lm))
    template = chat_template(lm, begins=bos != "never")
    begun = token is not None and template.before[:1] == (token,)
    form = TokenForm(
        token if begun or bos == "always" else None,
        chat=replace(template, before=template.before[int(begun) :]),
    )
    check_ids(lm, np.array([*form.opening, *template.between]), f"the chat template of {lm.name}")
    return form


def _no_beginning(lm: LanguageModel) -> str:
    return f"--bos always: the tokenizer of {lm.name} has no token that begins a sequence; use --bos never"


def token_stream(lm: LanguageModel, corpus: Corpus, form: TokenForm) -> TokenStream:
    """The tokens of a corpus, with the model's separator between documents; in a chat, where that token would end a
    message, with an empty line. Raises `DataError` for an id that the model's embedding does not hold, before any
    forward meets it.
    """
    if form.chat is None:
        stream = tokenize(corpus, partial(lm.encode, parse_special=form.parse_special), lm.separator)
    else:
        stream = tokenize(corpus, lambda text: lm.encode(text + _EMPTY_LINE), None)
    check_ids(lm, stream.tokens, f"{corpus.name} ({corpus.split})")
    return stream


def check_ids(lm: LanguageModel, ids: np.ndarray, what: str) -> None:
    """Raise `DataError`, naming the token and both sizes, for ids that the embedding of `lm` has no row for."""
    rows = lm.embedding_rows
    beyond = ids[ids >= rows]
    if len(beyond):
        token, count = int(beyond[0]), len(lm.tokenizer) if hasattr(lm.tokenizer, "__len__") else int(ids.max()) + 1
        raise DataError(
            f"{what}: token {lm.tokenizer.convert_ids_to_tokens(token)!r} has id {token}, but the embedding of "
            f"{lm.name} has {rows} rows and its tokenizer {count} tokens; resize the embedding or take the tokenizer "
            "it was trained with"
        )


def with_bos(windows: np.ndarray, bos: int | None) -> np.ndarray:
    """Windows (n, T) that begin with `bos`: put in front, the newest token falling out, unless it stands there."""
    if bos is None:
        return windows
    begun = np.concatenate([np.full((len(windows), 1), bos, windows.dtype), windows[:, :-1]], 1)
    stands = windows[:, :1] == bos
    return np.where(stands, windows, begun)


def special_strings(lm: LanguageModel) -> tuple[str, ...]:
    """The strings that a tokenizer takes for control tokens where it parses them."""
    added = getattr(lm.tokenizer, "added_tokens_decoder", {}).values()
    named = getattr(lm.tokenizer, "all_special_tokens", [])
    return tuple(dict.fromkeys([*named, *(str(token) for token in added if getattr(token, "special", False))]))


def holds_special(lm: LanguageModel, corpus: Corpus) -> bool:
    """Whether a text has strings of control tokens in it: only there `parse_special` makes a difference."""
    strings = special_strings(lm)
    return any(string in document.text for document in corpus.documents for string in strings)


def recorded_form(lm: LanguageModel, corpus: Corpus, form: TokenForm) -> dict[str, Any]:
    """The keys by which a configuration differs from one of before there were any: `bos` where windows begin with a
    token, `special_tokens` where the text spells control tokens and they stayed text, `chat` where windows are
    conversations; and `rope` where the model was given another rotary embedding than its own.
    """
    keys: dict[str, Any] = {} if form.bos is None else {"bos": form.bos}
    if form.chat is not None:
        keys["chat"] = form.chat.digest
    if not form.parse_special and holds_special(lm, corpus):
        keys["special_tokens"] = "text"
    if lm.rope is not None:
        keys["rope"] = str(lm.rope)
    return keys


def describe_tokens(lm: LanguageModel, corpus: Corpus, form: TokenForm) -> dict[str, Any]:
    """What a record says about how its text became tokens."""

    def name(ids: Sequence[int | None]) -> str | None:
        return None if ids[0] is None else str(lm.tokenizer.convert_ids_to_tokens(ids[0]))

    return {
        "documents": len(corpus.documents),
        "separator": name([lm.separator]) if form.chat is None else _EMPTY_LINE,
        "separator_id": lm.separator if form.chat is None else None,
        "bos": name([form.bos]),
        "bos_id": form.bos,
        "special_strings": "none" if not holds_special(lm, corpus) else "parsed" if form.parse_special else "text",
        **({} if form.chat is None else {"chat": form.chat.digest, "template_tokens": form.template_tokens}),
    }
