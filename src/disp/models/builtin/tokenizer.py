"""Training the small fast tokenizer of the built-in model."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MASK, END_OF_TURN, END_OF_TEXT, START = "<|mdm_mask|>", "<|eot_id|>", "<|endoftext|>", "<|startoftext|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = [MASK, END_OF_TURN, END_OF_TEXT, START, USER, ASSISTANT, SYSTEM]

CHAT_TEMPLATE = (
    START + "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}" + END_OF_TURN
    + "{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)  # fmt: skip


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose first ids are `SPECIAL_TOKENS`, with a chat template.

    Args:
        texts: the training corpus; any other text still tokenizes, into bytes at worst.
        vocab_size: upper bound on the number of tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        mask_token=MASK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
