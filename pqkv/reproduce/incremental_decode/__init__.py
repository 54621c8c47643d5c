"""The experiment `incremental-decode`: claims of a report on a GPU-resident incremental decoder, counted and timed."""

from pqkv.reproduce.incremental_decode.experiment import LETTERS, MODEL_LETTERS, cells, derive
from pqkv.reproduce.incremental_decode.settings import Settings

__all__ = ["LETTERS", "MODEL_LETTERS", "Settings", "cells", "derive"]
