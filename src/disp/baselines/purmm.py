"""PurMM (AAAI 2026): visual tokens that draw the most attention, in early and late layers alike, are blanked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from disp.baselines.attention import attention_of
from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions
from disp.data.sample import Query
from disp.errors import check_counts
from disp.models.interface import MDLM, Prefix
from disp.suspicion.threshold import cuts_on_a_line

# Values that differ by less than this share of the largest differ by rounding.
ALIKE = 1e-5


@dataclass(frozen=True)
class PurmmConfig:
    """Parameters of PurMM.

    Attributes:
        groups: of k-means on the attention that tokens draw in a layer; the highest one is suspected. The paper does
            not give the number.
    """

    groups: int = 3

    def __post_init__(self) -> None:
        check_counts(self, "groups", least=2)


def suspected(model: MDLM, prefix: Prefix, config: PurmmConfig) -> Tensor:
    """The visual tokens that PurMM blanks, bool ``[B, P]`` on the prefix's device.

    Raises:
        DispError: the model does not show its attention weights.
    """
    # 1. What each token draws in each layer: the mean over heads and over the text behind the pictures and the answer.
    length = prefix.embeds.shape[1]
    places = torch.arange(length, device=prefix.embeds.device)
    last = torch.where(prefix.visual_mask, places, -1).amax(1)
    behind = [length - 1 - place if place >= 0 else 0 for place in last.tolist()]
    drawn = attention_of(model, prefix, lambda weights, row: weights.mean((0, 1))[:length], behind)  # [B, layers, P]
    found = torch.zeros_like(prefix.visual_mask)
    for row, visual in enumerate(prefix.visual_mask.cpu()):
        if not visual.any():
            continue
        # 2. The highest group of each layer; those of the later half of the layers are the reference.
        highest = np.stack([highest_group(layer, config.groups) for layer in drawn[row][:, visual].double().numpy()])
        anywhere, late = highest.any(0), highest[len(highest) // 2 :].any(0)
        # 3. Of the tokens that any layer names, those next to one of the reference.
        locations = prefix.locations[row][prefix.visual_mask[row]].cpu().numpy()
        chosen = torch.from_numpy(anywhere & _beside(locations, locations[late]))
        found[row, visual.nonzero()[:, 0][chosen].to(found.device)] = True
    return found


def highest_group(values: np.ndarray, groups: int) -> np.ndarray:
    """The values of the highest mean of k-means on a line, bool ``[n]``; none where all values are alike."""
    if values.max() - values.min() <= ALIKE * abs(values).max():
        return np.zeros(len(values), bool)
    ordered = np.sort(values)
    return values >= ordered[cuts_on_a_line(ordered, groups)[-1]]


def _beside(places: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Which places are in the 3×3 neighbourhood of one of the reference, in the same tile of the same image, ``[n]``.

    Both are int64 ``[n, 4]``: image, tile, row, column.
    """

    def near(place: np.ndarray) -> bool:
        apart = np.abs(reference - place)
        return bool(((apart[:, :2] == 0).all(1) & (apart[:, 2:] <= 1).all(1)).any())

    return np.array([near(place) for place in places], bool)


def encode(model: MDLM, batch: Sequence[Query], config: PurmmConfig, seed: int) -> Prefix:
    """The queries with the suspected visual tokens set to zero."""
    prefix = model.encode(batch)
    blank = suspected(model, prefix, config)
    return replace(prefix, embeds=prefix.embeds.masked_fill(blank[..., None], 0))


PURMM = Answering(
    name="purmm",
    summary="Sets the visual tokens to zero that draw the most attention, in late layers and in others beside them.",
    source="PurMM, AAAI 2026",
    port=(
        "Attention is that of the text behind the pictures and of the response slots, all of them masked. The number "
        "of groups is not published. Where all tokens draw the same, none is blanked."
    ),
    config=PurmmConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, attention="yes", global_triggers="unlikely"),
    encode=encode,
)
