"""lm-evaluation-harness on coded caches: its model `pqkv`, and tasks of our own. It needs the extra `lm-eval`."""
