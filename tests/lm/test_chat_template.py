"""A chat template as token ids: its parts stand around the texts, it begins once, what it changes is refused."""

from dataclasses import replace

import pytest
from models import tiny_lm
from tokenizers_made import CHAT, chatting, spaced

from pqkv.errors import DataError, ModelError
from pqkv.lm.tokens import TokenForm, describe_tokens, recorded_form, token_form, token_stream
from pqkv.text import Corpus, Document

USER = "the text of the user once, in its place and unchanged, so windows cannot be put"
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST] "
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def model(tokenizer, vocab_size=170):
    return replace(tiny_lm(vocab_size=vocab_size), tokenizer=tokenizer, separator=tokenizer.eos_token_id)


def form(template=CHAT, bos="auto", **more):
    return token_form(model(chatting(template), **more), bos, parse_special=False, chat=True)


def names(lm, ids):
    return lm.tokenizer.convert_ids_to_tokens(list(ids))


def test_the_parts_are_those_around_the_texts():
    lm = model(chatting())
    found = token_form(lm, "auto", parse_special=False, chat=True)
    asked, answered = "the old river", "runs past a mill"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    written = lm.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    built = [*found.opening, *lm.encode(asked), *found.chat.between, *lm.encode(answered)]
    assert built == written[: len(built)]
    assert names(lm, written[len(built) :])[0] == "<|end|>"
    assert names(lm, found.chat.between)[0] == "<|end|>"
    assert found.template_tokens == len(built) - len(lm.encode(asked)) - len(lm.encode(answered))


def test_a_default_system_prompt_stays():
    system = "{{ bos_token }}<|system|>keep bread<|end|>" + CHAT.removeprefix("{{ bos_token }}")
    lm = model(chatting(system))
    assert "keep" in lm.tokenizer.decode(token_form(lm, "auto", parse_special=False, chat=True).opening)


def test_what_stands_between_is_encoded_as_it_stands_there():
    """Alone, this tokenizer would begin it with one space more."""
    lm = model(chatting(INST))
    found = token_form(lm, "auto", parse_special=False, chat=True)
    assert "".join(names(lm, found.chat.between)) == "\u2581[/INST]\u2581"
    assert "".join(names(lm, lm.encode(" [/INST] "))) == "\u2581\u2581[/INST]\u2581"


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_a_template_that_begins_a_sequence_does_it_once_and_not_at_all(bos):
    found = form(bos=bos)
    assert found.bos == (None if bos == "never" else 1)
    assert found.opening.count(1) == (0 if bos == "never" else 1)
    assert found.chat == form().chat  # the rest is the same, and so is its digest


@pytest.mark.parametrize(("bos", "token"), [("auto", None), ("always", 1), ("never", None)])
def test_a_template_that_begins_nothing_is_begun_where_it_is_asked_for(bos, token):
    """Although this tokenizer begins every text by itself: a template is encoded as it stands."""
    found = form(CHAT.removeprefix("{{ bos_token }}"), bos)
    assert (found.bos, found.opening.count(1)) == (token, int(token is not None))


def test_a_token_that_a_template_writes_out_is_its_own():
    literal = CHAT.replace("{{ bos_token }}", "<s>")
    assert form(literal, "auto") == form(literal, "always") == form(literal, "never") == form()


def test_a_beginning_that_the_tokenizer_does_not_have_is_refused():
    tokenizer = chatting(CHAT.removeprefix("{{ bos_token }}"))
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match=r"--bos always: .* no token that begins a sequence"):
        token_form(model(tokenizer), "always", parse_special=False, chat=True)
    assert token_form(model(tokenizer), "auto", parse_special=False, chat=True).bos is None


def test_a_template_that_trims_is_taken_and_told():
    assert not form().chat.trims
    for template in (
        CHAT.replace("m['content']", "m['content'] | trim"),
        CHAT.replace("'] }}", "'].lstrip('\\n ') }}"),
    ):
        found = form(template)
        assert found.chat.trims
        assert found.opening == form().opening


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (None, r"--chat: the tokenizer of tiny-llama has no chat template; .* leave --chat out"),
        (CHAT.replace("m['content']", "m['content'] | upper"), USER),
        (CHAT.replace("m['content']", "m['content'] | e"), USER),
        (
            CHAT.replace("m['content']", "m['content'] | replace('\\n', ' ')"),
            USER,
        ),
        (CHAT.replace("m['content']", "m['content'][:10]"), USER),
        (CHAT + "{{ messages[0]['content'] }}", USER),
        ("{{ messages[0]['content'] }}", "the text of the assistant once, in its place"),
        ("{{ messages[1]['content'] }} {{ messages[0]['content'] }}", "the text of the assistant once, in its place"),
        ("{{ raise_exception('a system prompt is wanted') }}", "cannot be filled .*: a system prompt is wanted; leave"),
        ("{% for %}", "cannot be filled .*; leave --chat out"),
    ],
)
def test_what_cannot_be_filled_token_by_token_is_refused_in_one_line(template, cause):
    with pytest.raises(ModelError, match=cause) as refused:
        form(template)
    assert "\n" not in str(refused.value)


def test_a_template_that_writes_the_date_is_the_same_tomorrow():
    lm = model(chatting(CHAT.replace("|>{{ m['c", "|>{{ strftime_now('%d.%m.%Y') }}{{ m['c")))
    assert "26.07.2024" in lm.tokenizer.decode(token_form(lm, "auto", parse_special=False, chat=True).opening)


@pytest.mark.parametrize(
    "before", ["\n  {% if true %}", "  {% if true %}\n", "{%- if true -%}\n", "\n\n {% if true %}"]
)
def test_nothing_else_of_a_template_is_touched(before):
    """White space at its beginning stays what transformers makes of it."""
    lm = model(chatting(before + CHAT + "{% endif %}\n"))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    written = lm.tokenizer.apply_chat_template(messages, tokenize=False)
    found = token_form(lm, "never", parse_special=False, chat=True)
    assert list(found.opening) == lm.encode(written[: written.index("a<")].replace("<s>", ""), parse_special=True)


def test_a_template_is_one_of_several():
    several = {"default": CHAT, "tool_use": "{{ raise_exception('tools are wanted') }}"}
    assert form(several) == form()


def test_a_control_token_without_an_embedding_is_named():
    with pytest.raises(DataError, match=r"the chat template of tiny-llama: token '<\|user\|>' has id 160"):
        form(vocab_size=160)


def test_documents_are_parted_by_an_empty_line_where_a_control_token_would_end_a_message():
    lm = model(chatting())
    corpus = Corpus("made", "all", (Document("0", "the <|end|> river"), Document("1", "a mill")))
    chat, plain = form(), TokenForm(bos=1)
    control = set(lm.tokenizer.all_special_ids)
    assert control & set(token_stream(lm, corpus, plain).tokens.tolist()) == {lm.separator}
    stream = token_stream(lm, corpus, chat)
    assert not control & set(stream.tokens.tolist())
    assert stream.tokens[: stream.document_starts[1]].tolist() == lm.encode("the <|end|> river\n\n")
    assert describe_tokens(lm, corpus, chat)["separator"] == "\n\n"
    assert describe_tokens(lm, corpus, chat)["template_tokens"] == chat.template_tokens


def test_a_record_names_the_template_where_one_is_used():
    lm, corpus = model(chatting()), Corpus("made", "all", (Document("0", "a mill"),))
    assert recorded_form(lm, corpus, TokenForm(bos=1)) == {"bos": 1}
    assert recorded_form(lm, corpus, form()) == {"bos": 1, "chat": form().chat.digest}
    other = form(CHAT.replace("|>{{ m['c", "|>now: {{ m['c"))
    assert other.chat.digest != form().chat.digest


def test_a_tokenizer_without_a_template_is_taken_without_one():
    assert token_form(model(spaced()), "auto", parse_special=False) == TokenForm(bos=1)
