"""pqkv: product-quantized, paged KV caches, and what they cost in quality, memory and time."""

__version__ = "0.1.0"
