"""Tokenizers of a closed vocabulary, for models that are made on the spot."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<|pad|>", "<|unk|>", "<|begin|>", "<|end|>")
FIRST_TOKEN_ID = len(_SPECIAL)
"""Id of the first token of a vocabulary; the special tokens are before it."""
BEGIN_ID, END_ID = _SPECIAL.index("<|begin|>"), _SPECIAL.index("<|end|>")


def closed_tokenizer(
    tokens: Sequence[str], pattern: str, *, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are these and four special ones; texts join without spaces.

    Args:
        tokens: The tokens; their ids are in order, from `FIRST_TOKEN_ID` on.
        pattern: Regular expression; each match in a text is one token.
        chat_template: Template of chats.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *tokens])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=chat_template,
    )
