"""Pre-training of the built-in model."""
