"""Ways of coding keys and values that others have published, one file each."""
