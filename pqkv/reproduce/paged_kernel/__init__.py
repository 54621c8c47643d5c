"""The experiment `paged-kernel`: what a report on a paged attention kernel for AMD claims, and what its tests see."""

from pqkv.reproduce.paged_kernel.experiment import LETTERS, MODEL_LETTERS, cells, derive
from pqkv.reproduce.paged_kernel.settings import Settings

__all__ = ["LETTERS", "MODEL_LETTERS", "Settings", "cells", "derive"]
