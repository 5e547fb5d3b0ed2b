"""Images of any number of visual tokens among the text of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from disp.models.interface import Prefix
from disp.models.parts.anyres import Merged


def splice_images(token_ids: Tensor, embeds: Tensor, images: Sequence[Merged]) -> Prefix:
    """Rows of text and images, left-padded to one length.

    Args:
        token_ids: int64 ``[B, P']``, left-padded with -1, where image i of the batch stands as ``-2 - i``.
        embeds: float ``[B, P', d]``, its embeddings; what stands at images and padding does not matter.
        images: the tokens of each image of the batch.
    """
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for row, ids in enumerate(token_ids.tolist()):
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        start = next((place for place, token in enumerate(ids) if token != -1), len(ids))
        first_image: int | None = None
        for place in [*(place for place, token in enumerate(ids) if token < -1), len(ids)]:
            text = embeds[row, start:place]
            nowhere = torch.full((len(text), 4), -1, device=embeds.device)
            neither = nowhere[:, 0] >= 0
            parts.append((text, nowhere, neither, neither))
            if place < len(ids):
                index = -2 - ids[place]
                first_image = index if first_image is None else first_image
                tokens, locations, visual = images[index]
                number = torch.full_like(locations[:, :1], index - first_image).where(visual[:, None], -1)
                parts.append(
                    (
                        tokens.to(embeds),
                        torch.cat((number, locations), dim=1).to(embeds.device),
                        visual.to(embeds.device),
                        ~visual.to(embeds.device),  # what an image holds besides is newlines
                    )
                )
            start = place + 1
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        rows.append((joined[0], joined[1], joined[2], joined[3]))
    longest = max(len(tokens) for tokens, *_ in rows)
    gaps = [longest - len(tokens) for tokens, *_ in rows]
    return Prefix(
        torch.stack([F.pad(tokens, (0, 0, gap, 0)) for (tokens, *_), gap in zip(rows, gaps, strict=True)]),
        torch.stack([torch.arange(longest, device=embeds.device) >= gap for gap in gaps]),
        torch.stack([F.pad(visual, (gap, 0)) for (_, _, visual, _), gap in zip(rows, gaps, strict=True)]),
        torch.stack([F.pad(places, (0, 0, gap, 0), value=-1) for (_, places, *_), gap in zip(rows, gaps, strict=True)]),
        separators=torch.stack([F.pad(between, (gap, 0)) for (*_, between), gap in zip(rows, gaps, strict=True)]),
    )
