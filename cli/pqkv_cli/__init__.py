"""The `pqkv` command: flags -> configuration -> one call into pqkv -> a table."""
