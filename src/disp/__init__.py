"""Find and remove backdoors in multimodal diffusion language models."""
