"""The toy's `Family`: all that the rest of disp asks of it."""

from disp.models.family import Family, Recipe


def detect(config):
    return config.get("model_type") == "toy"


def load(folder, *, dtype, device):
    from models.toy.model import Toy

    from disp.models.library import load_pretrained

    return load_pretrained(Toy, folder, dtype=dtype, device=device)


def sizes(config, folder):
    from models.toy.model import Toy, ToyConfig

    from disp.models.sizes import Sizes, TowerSizes, VisualCount, language_sizes, without_storage

    read = ToyConfig.from_dict(dict(config))
    tokens = read.side**2
    return Sizes(
        family="Toy",
        model=without_storage(lambda: Toy(read)),
        language=language_sizes(read),
        tower=TowerSizes(width=3, hidden=3, patches=tokens, stem=3 * tokens),
        projected=tokens,
        visual_count=lambda images: VisualCount(tokens * len(images), 0, len(images)),
    )


FAMILY = Family(
    "toy", "Toy", detect, load, sizes, options=(), keeps_layout=False,
    recipes={"toy": Recipe({"method": "lora", "learning_rate": 1e-3, "warmup_share": 0.03, "batch_size": 2})},
)  # fmt: skip
