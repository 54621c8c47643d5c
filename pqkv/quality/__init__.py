"""What a coded cache costs in quality: measures, modes, recall, and the evaluation that runs them."""
