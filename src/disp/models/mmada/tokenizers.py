"""What a folder with an MMaDA checkpoint holds besides the language model's weights: its two tokenizers."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from disp.errors import DispError
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.published import SPECIAL_TOKENS, VQ_FILE, VQ_HUB_ID
from disp.models.parts.tokenizers import read_tokenizer

# One newline after each header, where LLaDA's own template has two. Used where the checkpoint brings no template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}{% endif %}"
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The text tokenizer of a checkpoint, or None where it has none."""
    if not ((folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()):
        return None
    tokenizer = read_tokenizer(AutoTokenizer, folder, config=MMadaConfig())
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, int]:
    """Ids under the names of `SPECIAL_TOKENS`."""
    known, ids = tokenizer.get_vocab(), {}
    for name, (spellings, _) in SPECIAL_TOKENS.items():
        found = [known[spelling] for spelling in spellings if spelling in known]
        if not found:
            raise DispError(f"{folder}: the tokenizer has no {' or '.join(spellings)}; is it MMaDA's?")
        ids[name] = found[0]
    return ids


def vq_source(folder: Path, vq: str | Path | None) -> Path | None:
    """Where the image tokenizer's weights are; None where they are nowhere."""
    if vq is not None:
        return Path(vq)
    if (folder / VQ_FILE).is_file():
        return folder / VQ_FILE
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # A model that came from the hub brings its tokenizer from there too; one in a folder never opens a connection.
    offline = not folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())
    try:
        cached = Path(snapshot_download(VQ_HUB_ID, allow_patterns="*.safetensors", local_files_only=offline))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None
    return cached if any(cached.glob("*.safetensors")) else None
