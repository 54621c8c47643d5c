"""GGUF files that tests write themselves: a tiny model's weights, quantized as asked, with a byte-level tokenizer."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers_made import TEXT

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
KINDS = {
    "attn_q": gguf.GGMLQuantizationType.Q8_0,
    "ffn_down": gguf.GGMLQuantizationType.Q4_0,
    "ffn_up": gguf.GGMLQuantizationType.Q4_1,
}


def write_gguf(path, model, kinds=KINDS, *, settings=(), tensors=(), left_out=()):
    """Write `model` to `path`: weights whose GGUF name holds a key of `kinds` in that quantization, others in float32;
    `settings` and `tensors` are pairs that come on top. Returns what the weights are after quantization, by the
    names that transformers has for them.
    """
    config = model.config
    architecture = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, config.vocab_size)
    for key, value in settings:
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    written = {}
    for name, weight in model.named_parameters():
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if any(part in called for part in left_out):
            continue
        plain = gguf.GGMLQuantizationType.F32
        kind = next((kind for part, kind in kinds.items() if part in called and weight.ndim > 1), plain)
        data, back = _converted(name, weight.detach().float().numpy(), config)
        packed = gguf.quantize(data, kind)
        writer.add_tensor(called, packed, raw_dtype=kind)
        written[name] = torch.from_numpy(back(gguf.dequantize(packed, kind).reshape(data.shape)).copy())
    for name, data in tensors:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _converted(name, weight, config):
    """A weight as llama.cpp stores it, and the way back."""
    if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        half = config.head_dim // 2

        def interleave(rows):  # of a head, rotary pairs side by side instead of half a head apart
            return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)

        return interleave(weight), lambda rows: rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)
    if config.model_type == "gemma3_text" and "norm" in name:
        return weight + 1, lambda stored: stored - 1
    return weight, lambda stored: stored


def _add_tokenizer(writer, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    padded = words + [f"<unused{i}>" for i in range(vocab_size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(padded)
    writer.add_token_types([3 if word in CONTROL else 1 for word in padded])
    import json

    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)


def random_ids(length, vocab_size):
    return torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (1, length)))
