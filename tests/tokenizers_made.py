"""Small tokenizers of kinds that people's models bring, trained on the spot."""

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Remember: the code of amber-falcon is 48213.",
    "Question: what is the code of quiet-harbor? Answer: 10742",
    "the old river runs past a mill where seven people keep bread and letters for winter in their own way",
]

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def spaced(*, begins=True, vocab_size=160):
    """As Llama 2: a space before every text, another one or not, and `<s>` before every sequence if it `begins`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted({letter for text in TEXT for letter in text} | set(string.printable + "\u2581"))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def with_added_tokens(tokenizer, *names):
    """The tokenizer with control tokens that no embedding was made for."""
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(name, special=True) for name in names]})
    return tokenizer


def chatting(template=CHAT):
    """`spaced` with control tokens for a conversation and a chat template that writes them."""
    tokenizer = with_added_tokens(spaced(), "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    tokenizer.chat_template = template
    return tokenizer
