"""Comparison of rendered prompts with those of ``apply_chat_template``."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from astra_rl.core.text import Conversation, Utterance

if TYPE_CHECKING:
    from astra_rl.models.rendering import ConversationRenderer

_SYSTEM, _ASKED, _ANSWER, _MORE = "Be brief.", "What is 2 + 2?", "It is 4.", "Are you sure?"


def difference_from_template(renderer: ConversationRenderer) -> str | None:
    """Return where the prompt of a short conversation differs from its template's tokens.

    The conversation is rendered twice: with an answer that is known as text, and with one that has
    token ids, as if it had been sampled.

    Returns:
        The first difference in words; None if there is none, or if the conversation does not fit
        the context window.
    """
    assert renderer.template is not None
    tokenizer = renderer.tokenizer
    messages = [
        {"role": "user", "content": _ASKED},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _MORE},
    ]
    if renderer.side == "target" and renderer.supports_system:
        messages.insert(0, {"role": "system", "content": _SYSTEM})
    expected = tokenizer(renderer.template.render(messages), add_special_tokens=False).input_ids
    if renderer.window is not None and len(expected) > renderer.window:
        return None
    for answer in (_ANSWER, Utterance(_ANSWER, token_ids=renderer.utterance_ids(_ANSWER))):
        if renderer.side == "attacker":
            conversation = Conversation(brief=_ASKED, turns=(answer, _MORE))
        else:
            system = _SYSTEM if renderer.supports_system else None
            conversation = Conversation(system=system, turns=(_ASKED, answer, _MORE))
        ids = renderer.render(conversation, reserve=0).ids
        for place, pair in enumerate(zip_longest(ids, expected)):
            if pair[0] != pair[1]:
                ours, theirs = (
                    "no token" if token is None else repr(tokenizer.convert_ids_to_tokens(token))
                    for token in pair
                )
                before = tokenizer.decode(list(ids[max(0, place - 8) : place]))
                return f"{ours} instead of {theirs} as token {place + 1}, after {before!r}"
    return None
