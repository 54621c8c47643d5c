"""What the task files name: the harness takes functions from a file beside them."""

from pqkv.harness.needle import documents

__all__ = ["documents"]
