"""Training of the bundled reference model: tokenizer, packed sequences, planted recall, resumable steps, model card."""
