"""Language models: loading, the bundled reference model, capture, training, and the transformers plug-in."""

from pqkv.lm.hf_cache import PQKVCache
from pqkv.lm.load import LanguageModel, load_model
from pqkv.lm.plugin import attach

__all__ = ["LanguageModel", "PQKVCache", "attach", "load_model"]
