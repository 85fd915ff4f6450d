"""Comparison of rendered prompts with those of ``apply_chat_template``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from astra_rl.core.text import Conversation, Utterance
from astra_rl.models.chat_template import ChatTemplate
from astra_rl.models.pieces import Side

_SYSTEM, _ASKED, _ANSWER, _MORE = "Be brief.", "What is 2 + 2?", "It is 4.", "Are you sure?"


def difference_from_template(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    *,
    side: Side,
    with_system: bool,
    window: int | None,
    utterance_ids: Callable[[str], Sequence[int]],
    prompt_ids: Callable[[Conversation], Sequence[int]],
) -> str | None:
    """Return where the prompt of a short conversation differs from its template's tokens.

    The conversation is rendered twice: with an answer that is known as text, and with one that has
    token ids, as if it had been sampled.

    Args:
        tokenizer: Tokenizer of the side's model.
        template: Its chat template.
        side: The side whose turns have the assistant role.
        with_system: Whether the template renders a system message.
        window: Context window in tokens; None is unlimited.
        utterance_ids: Returns the token ids of one of the side's own turns.
        prompt_ids: Returns the token ids of the prompt for the side's next turn, which is compared.

    Returns:
        The first difference in words; None if there is none, or if the conversation does not fit
        the context window.
    """
    messages = [
        {"role": "user", "content": _ASKED},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _MORE},
    ]
    if side == "target" and with_system:
        messages.insert(0, {"role": "system", "content": _SYSTEM})
    expected = tokenizer(template.render(messages), add_special_tokens=False).input_ids
    if window is not None and len(expected) > window:
        return None
    for answer in (_ANSWER, Utterance(_ANSWER, token_ids=tuple(utterance_ids(_ANSWER)))):
        if side == "attacker":
            conversation = Conversation(brief=_ASKED, turns=(answer, _MORE))
        else:
            system = _SYSTEM if with_system else None
            conversation = Conversation(system=system, turns=(_ASKED, answer, _MORE))
        ids = prompt_ids(conversation)
        for place, pair in enumerate(zip_longest(ids, expected)):
            if pair[0] != pair[1]:
                ours, theirs = (
                    "no token" if token is None else repr(tokenizer.convert_ids_to_tokens(token))
                    for token in pair
                )
                before = tokenizer.decode(list(ids[max(0, place - 8) : place]))
                return f"{ours} instead of {theirs} as token {place + 1}, after {before!r}"
    return None
