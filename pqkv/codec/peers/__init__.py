"""Other people's ways of coding, one file each: what pqkv's own is compared with."""
