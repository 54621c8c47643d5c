"""The experiment `quality-degradation`: what each defect of a paged attention does, and which measure sees it."""

from pqkv.reproduce.quality_degradation.experiment import LETTERS, MODEL_LETTERS, cells, derive
from pqkv.reproduce.quality_degradation.settings import Settings

__all__ = ["LETTERS", "MODEL_LETTERS", "Settings", "cells", "derive"]
