"""Pre-training of the built-in model, in parts; `disp.experiments.pretrain` runs them."""
