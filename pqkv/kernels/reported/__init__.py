"""Attention as the reports behind pqkv wrote it, where it is sound and slow: what their speeds are held to."""
