"""Language models: loading, the bundled reference model, capture, training, and the transformers plug-in."""

from pqkv.codec.hub import Codebooks
from pqkv.lm.hf_cache import PQKVCache
from pqkv.lm.load import load_model
from pqkv.lm.model import LanguageModel
from pqkv.lm.plugin import attach

__all__ = ["Codebooks", "LanguageModel", "PQKVCache", "attach", "load_model"]
