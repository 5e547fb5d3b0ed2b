"""DiffusionGemma's published config, and what `disp` adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import DiffusionGemmaConfig

from disp.errors import DispError
from disp.models.checkpoint import read_json

SUBSTITUTES = ("mean", "random", "zero")


class DiffusionGemmaMDLMConfig(DiffusionGemmaConfig):
    """The published config and what `disp` adds to it; `transformers` reads it as its own and ignores the rest.

    Attributes:
        visual_substitute: what stands in for a masked visual token: the mean of the visual tokens of its own image
            ("mean"), the embeddings of random tokens, the noise that the model was trained with ("random"), or
            nothing ("zero").
        noise_seed: seed of the random tokens that fill open slots and, with "random", masked visual tokens.
        end_of_turn_token_id: the token ``<turn|>``.
        end_ids: further ids that end an answer.
        max_visual_tokens: visual tokens of an image at most; its size follows from it.
        sampling: arguments of `disp.models.canvas.CanvasSampling` that differ from its defaults.
        denoising_steps: of one canvas, at most.
        gen_length: slots of a response; None for the whole canvas.
    """

    # The published ones, which are never None here.
    boi_token_id: int = 255_999
    eoi_token_id: int = 258_882
    image_token_id: int = 258_880
    canvas_length: int = 256

    visual_substitute: Literal["mean", "random", "zero"] = "mean"
    noise_seed: int = 0
    end_of_turn_token_id: int = 106
    end_ids: list[int] | None = None
    max_visual_tokens: int = 280
    sampling: dict[str, Any] | None = None
    denoising_steps: int = 48
    gen_length: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.visual_substitute not in SUBSTITUTES:
            raise DispError(f"visual_substitute must be one of {', '.join(SUBSTITUTES)}, got {self.visual_substitute}")
        if self.gen_length is None:
            self.gen_length = self.canvas_length
        if not 1 <= self.gen_length <= self.canvas_length:
            raise DispError(f"gen_length must be from 1 to the canvas of {self.canvas_length}, got {self.gen_length}")

    @classmethod
    def from_official(
        cls,
        config: dict[str, Any],
        vision: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
        images: dict[str, Any] | None = None,
    ) -> DiffusionGemmaMDLMConfig:
        """From the published files.

        Args:
            config: ``config.json``. Where it holds fields of this class, or a section ``"disp"`` of them, these come
                before those of the other files.
            vision: replaces the config's own ``vision_config``, if given.
            generation: ``generation_config.json``, for the sampler.
            images: the settings of the image processor, for the number of visual tokens.
        """
        fields = {**config, **config.get("disp", {})}
        fields.pop("disp", None)
        if vision is not None:
            fields["vision_config"] = vision
        generation = generation or {}
        names = ("t_min", "t_max", "stability_threshold", "confidence_threshold")
        sampling = {name: generation[name] for name in names if generation.get(name) is not None}
        sampling |= {name: value for name, value in (generation.get("sampler_config") or {}).items() if name[0] != "_"}
        if not fields.get("sampling"):
            fields["sampling"] = sampling
        if generation.get("max_denoising_steps"):
            fields.setdefault("denoising_steps", generation["max_denoising_steps"])
        if images and images.get("max_soft_tokens"):
            fields.setdefault("max_visual_tokens", images["max_soft_tokens"])
        if not fields.get("end_ids"):
            ends = generation.get("eos_token_id") or fields.get("eos_token_id")
            ends = ends or (fields.get("text_config") or {}).get("eos_token_id") or []
            fields["end_ids"] = [ends] if isinstance(ends, int) else list(ends)
        return cls.from_dict(fields)


def read_config(folder: Path) -> DiffusionGemmaMDLMConfig:
    """The config of a folder, with what the files beside it say of the sampler and of pictures.

    Raises:
        DispError: a file is missing or damaged, or holds a value that makes no sense.
    """
    files = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
    found = {name: read_json(folder / name) for name in files if (folder / name).is_file()}
    images = found.get("preprocessor_config.json") or found.get("processor_config.json", {}).get("image_processor")
    return DiffusionGemmaMDLMConfig.from_official(
        read_json(folder / "config.json"), None, found.get("generation_config.json"), images
    )
