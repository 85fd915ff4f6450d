"""Chat templates and control tokens of tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from astra_rl.errors import ConfigurationError, first_line

_PLACEHOLDER = "ASTRA{}SLOT"


def split_template(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> tuple[str, ...]:
    """Return the template's literal text around the contents of messages with these roles.

    The template is rendered once with a placeholder for each content and split at the placeholders,
    so model output never passes through the template.

    Raises:
        ConfigurationError: The template rejects these roles, or does not render each message once
            and in order.
    """
    name = tokenizer.name_or_path or "this tokenizer"
    placeholders = [_PLACEHOLDER.format(index) for index in range(len(roles))]
    messages = [
        {"role": role, "content": each} for role, each in zip(roles, placeholders, strict=True)
    ]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template can raise anything that its expressions raise
        raise ConfigurationError(
            f"the chat template of {name} rejects messages with the roles {list(roles)}: "
            f"{first_line(error)}. Use chat=False, or another template."
        ) from error
    # The capture group keeps the placeholders: each must occur once, in order.
    pieces = re.split(f"({'|'.join(placeholders)})", str(text))
    if pieces[1::2] != placeholders:
        raise ConfigurationError(
            f"the chat template of {name} does not render each message of the roles {list(roles)} "
            "once and in order. Use chat=False, or another template."
        )
    return tuple(pieces[0::2])


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the control tokens of the tokenizer and its template; text must not contain them."""
    template = str(tokenizer.chat_template or "")
    return frozenset(
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if (token.special or (token.content.strip() and token.content in template))
        # The unknown token may occur in any text.
        and index != tokenizer.unk_token_id
    )


def end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the end-of-sequence tokens of the tokenizer."""
    ends = tokenizer.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list) else {int(ends)}


@lru_cache(maxsize=16)
def newline_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return all tokens whose text contains a line break."""
    return frozenset(index for index in range(len(tokenizer)) if "\n" in tokenizer.decode([index]))
