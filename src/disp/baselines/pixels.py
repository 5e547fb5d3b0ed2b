"""Input transforms: the pictures are compressed, blurred or shrunk before the model sees them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageFilter

from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions
from disp.data.sample import Query, open_image
from disp.draws import generator
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class JpegConfig:
    """Parameters of JPEG compression.

    Attributes:
        quality: of the encoder, 1 to 95. No paper on vision-language models names one; 75 is the encoder's own default,
            and 50 and 25 are worth a run.
    """

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise DispError(f"quality must be from 1 to 95, got {self.quality}")


@dataclass(frozen=True)
class BlurConfig:
    """Parameters of Gaussian blur.

    Attributes:
        radius: standard deviation as a share of the picture's shorter side; 0.06 is the largest in OrthoPurify's code.
    """

    radius: float = 0.06

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1:
            raise DispError(f"radius must be in (0, 1], got {self.radius}")


@dataclass(frozen=True)
class ShrinkConfig:
    """Parameters of shrinking.

    Attributes:
        scale: width and height of the shrunk picture as a share of the original's; 0.8 is the smallest in
            OrthoPurify's code.
    """

    scale: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise DispError(f"scale must be in (0, 1], got {self.scale}")


def jpeg(picture: Image.Image, config: JpegConfig) -> Image.Image:
    """The picture as it comes out of JPEG compression."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=config.quality)
    return open_image(Image.open(file))


def blur(picture: Image.Image, config: BlurConfig) -> Image.Image:
    """The picture after Gaussian blur."""
    return picture.filter(ImageFilter.GaussianBlur(config.radius * min(picture.size)))


def shrink(picture: Image.Image, config: ShrinkConfig, seed: int, key: str) -> Image.Image:
    """The picture shrunk, at a random place of a black one of its old size (Li et al. 2021, ShrinkPad)."""
    size = [max(1, round(config.scale * side)) for side in picture.size]
    room = [old - new + 1 for old, new in zip(picture.size, size, strict=True)]
    left, top = (int(place) for place in generator(seed, "shrink", key).integers(room))
    padded = Image.new("RGB", picture.size)
    padded.paste(picture.resize((size[0], size[1]), Image.Resampling.BICUBIC), (left, top))
    return padded


def _encoded(model: MDLM, batch: Sequence[Query], transform: Callable[[Image.Image, str], Image.Image]) -> Prefix:
    """The queries with every picture transformed; a picture's key is its sample's id and its number there."""
    changed = [
        replace(
            query,
            images=tuple(
                transform(open_image(source), f"{query.sample_id}#{number}")
                for number, source in enumerate(query.images)
            ),
        )
        for query in batch
    ]
    return model.encode(changed)


ASSUMES = Assumptions(training=OPTIONAL_TRAINING, global_triggers="partly")

JPEG = Answering(
    name="jpeg",
    summary="Compresses the pictures as JPEG before the model sees them.",
    source="a common control; no setting for vision-language models is published",
    port="Nothing.",
    config=JpegConfig,
    assumes=ASSUMES,
    encode=lambda model, batch, config, seed: _encoded(model, batch, lambda picture, key: jpeg(picture, config)),
)
BLUR = Answering(
    name="blur",
    summary="Blurs the pictures before the model sees them.",
    source="a setting of OrthoPurify's comparisons",
    port="The blurred picture is not blended with the old one.",
    config=BlurConfig,
    assumes=ASSUMES,
    encode=lambda model, batch, config, seed: _encoded(model, batch, lambda picture, key: blur(picture, config)),
)
SHRINK = Answering(
    name="shrink",
    summary="Shrinks the pictures and lays each at a random place of a black one before the model sees them.",
    source="Li et al., Backdoor Attack in the Physical World (ShrinkPad), 2021",
    port="Nothing.",
    config=ShrinkConfig,
    assumes=ASSUMES,
    encode=lambda model, batch, config, seed: _encoded(
        model, batch, lambda picture, key: shrink(picture, config, seed, key)
    ),
)
