"""Pre-training of the built-in model, in parts; `studies.pretrain` runs them."""
