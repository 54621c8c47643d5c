"""The experiment `attention-variants`: what a lesson on ways of attending claims of their memory, speed and code."""

from pqkv.reproduce.attention_variants.experiment import LETTERS, MODEL_LETTERS, cells, derive
from pqkv.reproduce.attention_variants.settings import Settings

__all__ = ["LETTERS", "MODEL_LETTERS", "Settings", "cells", "derive"]
