"""Other people's ways of coding keys and values, one file each: what pqkv's own is compared with."""
