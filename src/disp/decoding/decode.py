"""The old place of these names; to be removed."""

from disp.decoding.config import DecodeConfig, Decoded
from disp.decoding.generate import answers_of, decode, decode_with_lengths, generate
from disp.decoding.samplers import decode_config, own_settings
from disp.decoding.schedule import commit_quotas, commit_schedule

__all__ = [
    "DecodeConfig",
    "Decoded",
    "answers_of",
    "commit_quotas",
    "commit_schedule",
    "decode",
    "decode_config",
    "decode_with_lengths",
    "generate",
    "own_settings",
]
