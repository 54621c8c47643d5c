"""The experiment `million`: what two reports on product-quantized caches claim, part by part, measured."""

from pqkv.reproduce.million.experiment import LETTERS, MODEL_LETTERS, cells, derive
from pqkv.reproduce.million.settings import Settings

__all__ = ["LETTERS", "MODEL_LETTERS", "Settings", "cells", "derive"]
