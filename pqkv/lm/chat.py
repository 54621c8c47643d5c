"""A model's chat template as token ids: what stands before a user's text, and between that and the answer."""

from __future__ import annotations

from dataclasses import dataclass

from pqkv.config import digest_of
from pqkv.errors import ModelError
from pqkv.lm.model import LanguageModel
from pqkv.reasons import reason

# Texts of no window, with what a template may be tempted to rewrite: quotes, markup, braces, empty lines, indents.
_ASKED = 'Zq4 "asked" <b>it\'s</b> &\n\n\t  {{ of }} User_7'
_ANSWERED = 'Zq5 "answered" <b>it\'s</b> &\n\n\t  {{ by }} Assistant_9'
_BLANK = " \n"
# The day for templates that write one, so that a record is found again tomorrow. transformers lets no function of ours
# into a template, so its own is covered by a macro; the line's end belongs to the macro's last tag and is not written.
_DAY = {
    "%d": "26", "%-d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024", "%a": "Fri",
    "%A": "Friday", "%H": "12", "%M": "00", "%S": "00",
}  # fmt: skip
_FIXED_DAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('{name}', '{value}')" for name, value in _DAY.items())
    + " }}{% endmacro %}\n"
)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Token ids `before` the user's text, behind what begins the sequence, and `between` it and the assistant's answer.
    A template that `trims` takes white space from the ends of messages; the text of windows keeps it.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    trims: bool = False

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name these ids."""
        return digest_of([self.before, self.between])


def chat_template(lm: LanguageModel, *, begins: bool) -> ChatTemplate:
    """The template of the tokenizer of `lm`, filled with one user's message and its answer; what it writes besides, as
    a default system prompt, stays. With `begins` its `before` holds the beginning of sequence where the template writes
    one; else the template is told that there is no such token.

    Raises `ModelError` for a tokenizer without a template, and for a template that cannot be filled or changes texts.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        raise ModelError(
            f"--chat: the tokenizer of {lm.name} has no chat template; take an instruct model, or leave --chat out"
        )
    filled = _filled(lm, begins, _ASKED, _ANSWERED)
    start, answer = filled.find(_ASKED), filled.find(_ANSWERED)
    end = start + len(_ASKED)
    sound = {"user": filled.count(_ASKED) == 1, "assistant": filled.count(_ANSWERED) == 1 and answer >= end}
    if wrong := [who for who in sound if not sound[who]]:
        raise ModelError(
            f"--chat: the chat template of {lm.name} does not write the text of the {wrong[0]} once, in its place and "
            "unchanged, so windows cannot be put into it token by token; leave --chat out"
        )
    blank = [f"{_BLANK}{text}{_BLANK}" for text in (_ASKED, _ANSWERED)]
    spaced = _filled(lm, begins, *blank)

    def encode(text: str) -> list[int]:
        return lm.encode(text, parse_special=True)

    # in one piece with what stands before it: alone, a tokenizer may begin it as it begins a text
    asked, header = encode(filled[:end]), encode(filled[:answer])
    together = header[: len(asked)] == asked
    return ChatTemplate(
        before=tuple(encode(filled[:start])),
        between=tuple(header[len(asked) :] if together else encode(filled[end:answer])),
        trims=not all(text in spaced for text in blank),
    )


def _filled(lm: LanguageModel, begins: bool, asked: str, answered: str) -> str:
    """What the template makes of two messages."""
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    own = {} if begins else {"bos_token": ""}
    try:
        template = _FIXED_DAY + lm.tokenizer.get_chat_template()
        return str(lm.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **own))
    except Exception as error:  # a template is a program, and raises what it likes
        raise ModelError(
            f"--chat: the chat template of {lm.name} cannot be filled with a question and its answer: {reason(error)}; "
            "leave --chat out"
        ) from error
