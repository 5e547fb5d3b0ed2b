"""The samplers by name, and their configs from flat settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from disp.decoding.canvas import CanvasConfig, decode_canvas
from disp.decoding.config import DecodeConfig, Decoded
from disp.decoding.dim import DimConfig, decode_dim
from disp.decoding.dream import DreamConfig, decode_dream
from disp.decoding.llada import LladaConfig, decode_llada
from disp.decoding.profiles import profiled
from disp.errors import DispError, unknown_name
from disp.models.interface import MDLM


@dataclass(frozen=True)
class Sampler:
    """One way to fill the slots of a response.

    Attributes:
        config: its options; a subclass of `DecodeConfig` with the sampler's name as the default of ``sampler``.
        decode: called with model, prefix, config and the keywords ``keys`` and ``seed``; what each of them is stands
            at `disp.decoding.generate.decode`.
        needs: what a model must have besides what `MDLM` asks for; see `disp.models.canvas.CanvasModel`.
        suits: which models those are, in words.
    """

    config: type[DecodeConfig]
    decode: Callable[..., Decoded]
    needs: tuple[str, ...] = ()
    suits: str = "models with a mask token"

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options, those of every sampler included."""
        return tuple(each.name for each in fields(self.config) if each.init)

    def check(self, model: MDLM) -> None:
        """Raise `DispError` if the sampler is not for this model."""
        if not all(hasattr(model, name) for name in self.needs):
            raise DispError(
                f"the sampler {self.config.sampler!r} is for {self.suits}, not for {type(model).__name__}; "
                f"choose another of {', '.join(SAMPLERS)}"
            )


SAMPLERS: dict[str, Sampler] = {
    "llada": Sampler(LladaConfig, decode_llada),
    "dream": Sampler(DreamConfig, decode_dream),
    "dim": Sampler(DimConfig, decode_dim),
    "canvas": Sampler(CanvasConfig, decode_canvas, ("denoise_canvas", "append"), "models without a mask token"),
}
DEFAULT = "llada"
# Options that say how a model's answers end.
_LASTING = ("stop", "suffix")


def options() -> dict[str, list[Any]]:
    """Every option of any sampler, and the values that it has where nobody sets it."""
    found: dict[str, list[Any]] = {}
    for sampler in SAMPLERS.values():
        for name in sampler.options:
            found.setdefault(name, []).append(getattr(sampler.config, name))
    return found


def decode_config(gen_length: int = 32, steps: int = 32, *, sampler: str = DEFAULT, **given: Any) -> DecodeConfig:
    """The config of a sampler from flat settings, as models, benchmark tasks and files have them.

    Lists, which JSON and YAML have for tuples, become tuples. An option of another sampler may be there as long as it
    says what it says where nobody sets it.

    Args:
        gen_length: response slots L.
        steps: denoising steps.
        sampler: a name of `SAMPLERS`.
        given: options of that sampler; see its config.

    Raises:
        DispError: there is no such sampler, it has no such option, or a value does not fit.
    """
    kind, everywhere = _sampler_of(sampler), options()
    known = {}
    for name, value in given.items():
        if name in kind.options:
            known[name] = _tuples(value)
        elif value not in everywhere.get(name, ()):
            raise unknown_name(f"option of the sampler {sampler!r}:", name, kind.options)
    try:
        return kind.config(gen_length=gen_length, steps=steps, **known)
    except TypeError as error:
        raise DispError(f"a setting of the sampler {sampler!r} is of the wrong kind ({error}); got {known}") from None


def own_settings(model: MDLM, *, profile: str | None = None, **given: Any) -> DecodeConfig:
    """How the model decodes by itself, but for the settings that are given and not None; see `changed_config`.

    Args:
        model: the model.
        profile: a name of `disp.decoding.profiles.PROFILES`, whose settings come before the model's own and after those
            that are given; None for none.
        given: settings.
    """
    given = {name: value for name, value in given.items() if value is not None}
    config = changed_config({"gen_length": model.gen_length, **model.generation_defaults}, given)
    return config if profile is None else profiled(config, profile, keep=given)


def changed_config(own: Mapping[str, Any], given: Mapping[str, Any]) -> DecodeConfig:
    """The config of flat settings ``own``, which ``given`` ones win over.

    If these name another sampler, what of ``own`` it does not know is left behind.

    Raises:
        DispError: as `decode_config`.
    """
    sampler = given.get("sampler", own.get("sampler", DEFAULT))
    if sampler != own.get("sampler", DEFAULT):
        own = {name: value for name, value in own.items() if name in _sampler_of(sampler).options}
    return decode_config(**{**own, **given})


def lasting_settings(own: Mapping[str, Any], sampler: str | None = None) -> dict[str, Any]:
    """What of a model's settings says how its answers are, and not how they are decoded: it holds for others, too.

    Args:
        own: the model's settings.
        sampler: what decodes; the model's own sampler if None. What it does not know is left out.
    """
    sampler = str(own.get("sampler", DEFAULT) if sampler is None else sampler)
    known = _sampler_of(sampler).options
    return {"sampler": sampler, **{name: own[name] for name in _LASTING if name in own and name in known}}


def _sampler_of(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise unknown_name("sampler", str(name), SAMPLERS)
    return SAMPLERS[name]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
