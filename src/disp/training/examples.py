"""What a model is fine-tuned on, step by step: queries in the run's own order, their noise, and what the tower saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from disp.data.sample import Query
from disp.diffusion.forward import draw_noise
from disp.draws import generator
from disp.models.interface import MDLM
from disp.training.config import TrainConfig

# Tower features of one epoch are kept in memory up to this size; beyond it images are encoded at every step.
FEATURE_CACHE_BYTES = 2 << 30
# By sample and number of its pictures that are shown: some families tile an only picture and show several small.
Features = dict[tuple[str, int], list[Tensor]]


class Examples(Dataset[Any]):
    """Query and noise of every position of the run: epoch after epoch, each in its own order."""

    def __init__(
        self,
        queries: list[Query],
        features: Features | None,
        config: TrainConfig,
        length: int,
        min_ratio: float,
    ):
        self.queries, self.features, self.config, self.length = queries, features, config, length
        self.min_ratio = min_ratio
        self.orders: dict[int, Any] = {}
        self.count = len(queries)  # of one epoch; a run sets as many as its steps take

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, place = divmod(position, len(self.queries))
        if epoch not in self.orders:
            self.orders = {epoch: generator(self.config.seed, "order", epoch).permutation(len(self.queries))}
        query = self.queries[self.orders[epoch][place]]
        ratio, uniforms = draw_noise(self.config.seed, query.key, epoch, self.length, self.min_ratio)
        features = None if self.features is None else self.features[query.sample_id, len(query.images)]
        return {"query": query, "features": features, "ratio": ratio, "uniforms": uniforms}


class Collator:
    """Examples to the arguments of the model's ``forward``."""

    def __init__(self, model: MDLM):
        self.model = model

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        queries = [example["query"] for example in examples]
        features = [tensor for example in examples for tensor in example["features"] or ()]
        clean = self.model.encode_responses([query.response for query in queries], self.model.gen_length)
        ratio = torch.tensor([example["ratio"] for example in examples], dtype=torch.float32)
        uniforms = torch.stack([example["uniforms"] for example in examples])
        return {**self.model.prepare(queries, features), "clean": clean, "ratio": ratio, "uniforms": uniforms}


def cached_features(model: MDLM, queries: Sequence[Query], features: Features) -> Features | None:
    """Tower features of what each turn shows, ``features`` filled up, or None where they would take too much memory."""
    images = {(query.sample_id, len(query.images)): query.images for query in queries}
    total = sum(len(sources) for sources in images.values())
    size = done = 0
    for key, sources in images.items():
        if key not in features:
            features[key] = model.image_features(sources) if sources else []
        size += sum(tensor.nbytes for tensor in features[key])
        done += len(sources)
        # If the others are as large as those before; what is held is never more.
        if max(size, size * total / max(done, 1)) > FEATURE_CACHE_BYTES:
            return None
    return features
