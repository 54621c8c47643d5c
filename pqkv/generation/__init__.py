"""`pqkv generate`: what a model writes on coded caches and on the exact one, from the same prompt."""

from pqkv.generation.session import Session, prepare

__all__ = ["Session", "prepare"]
