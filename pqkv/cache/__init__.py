"""Caches of keys and values: exact or coded, paged or contiguous."""

from pqkv.cache.footprint import effective_bits, footprint
from pqkv.cache.kv_cache import CacheMemory, KVCache
from pqkv.cache.layer import Geometry
from pqkv.cache.pool import PagePool, PoolStats
from pqkv.cache.static import StaticStore
from pqkv.cache.table import PageTable
from pqkv.schedule import coded_len

__all__ = [
    "CacheMemory",
    "Geometry",
    "KVCache",
    "PagePool",
    "PageTable",
    "PoolStats",
    "StaticStore",
    "coded_len",
    "effective_bits",
    "footprint",
]
