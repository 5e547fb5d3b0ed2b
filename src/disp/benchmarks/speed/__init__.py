"""How long decoding, saliency and a training step take, beside a plain loop in the manner of published code."""
