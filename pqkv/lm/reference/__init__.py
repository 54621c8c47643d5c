"""The bundled reference model: package data, read by `pqkv.lm.load_model('reference')`."""
