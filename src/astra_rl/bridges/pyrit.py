"""PyRIT: a trained attacker as the adversarial chat of an attack, and as a converter.

`pyrit` pins its dependencies narrowly, so it is no extra: install it beside this package.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from astra_rl.bridges.attacker import TrainedAttacker
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Conversation
from astra_rl.errors import MissingDependencyError
from astra_rl.infra.jsonio import parse_json

try:
    from pyrit.converter import Converter, ConverterResult
    from pyrit.models import (
        ComponentIdentifier,
        JsonResponseConfig,
        Message,
        construct_response_from_request,
    )
    from pyrit.prompt_target import PromptTarget
    from pyrit.prompt_target.common.target_capabilities import TargetCapabilities
    from pyrit.prompt_target.common.target_configuration import TargetConfiguration
except ImportError as error:
    raise MissingDependencyError(
        f"PyRIT 1.1 is not installed ({error}). Install it with: pip install 'pyrit>=1.1'"
    ) from error


_ATTACK = "next_message"
"""Key of the attack in the replies that PyRIT's attacks parse: its schema ``adversarial_chat``."""


class AttackerTarget(PromptTarget):  # type: ignore[misc]
    """A trained attacker in PyRIT's place of the adversarial chat, as of `RedTeamingAttack`.

    What PyRIT sends it as messages of the user is what the objective target answered; what it
    replies is sent to the objective target. The first message, which only asks to begin, and
    PyRIT's system prompt are not read, because the attacker has the brief that it was trained with.
    An attack with ``use_score_as_feedback`` appends the rationale of the score to the answer; set
    it to False for an attacker that has seen none in training.

    Args:
        run: Folder of the run.
        goal: What the attacker is to bring about, if the brief of the run has no goal of its own.
        checkpoint: Name of a folder in its ``checkpoints``.
        device: See `TrainedAttacker`.
        seed: Seed; with one, equal conversations get equal attacks.
    """

    _DEFAULT_CONFIGURATION = TargetConfiguration(
        capabilities=TargetCapabilities(
            supports_multi_turn=True,
            supports_editable_history=True,
            supports_system_prompt=True,
            supports_json_output=True,  # else PyRIT writes instructions on JSON into the chat
            supports_json_schema=True,
        )
    )

    def __init__(
        self,
        *,
        run: str,
        goal: str | None = None,
        checkpoint: str = "last",
        device: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(model_name=f"astra_rl {run}")
        self._attacker = TrainedAttacker(run, checkpoint=checkpoint, device=device)
        self._opening, self._seed = self._attacker.opening(goal=goal), seed

    async def _send_prompt_to_target_async(
        self, *, normalized_conversation: list[Message]
    ) -> list[Message]:
        context = _as_target_answered(normalized_conversation, self._opening)
        turn = len(context.turns)
        seeds = None if self._seed is None else [derive_seed(self._seed, "message", turn)]
        said = (await asyncio.to_thread(self._attacker.write, [context], seeds))[0]
        request = normalized_conversation[-1].message_pieces[0]
        error = "none" if said.strip() else "empty"
        reply = str(said)
        if JsonResponseConfig.from_metadata(metadata=request.prompt_metadata).enabled:
            reply = json.dumps({_ATTACK: reply, "rationale": "", "last_response_summary": ""})
        return [
            construct_response_from_request(
                request=request, response_text_pieces=[reply], error=error
            )
        ]


def _as_target_answered(messages: Sequence[Any], opening: Conversation) -> Conversation:
    """Return the conversation of an adversarial chat, in which the attacker is the assistant."""
    context = opening
    for message in messages:
        piece = message.message_pieces[0]
        if piece.api_role == "assistant":
            context = context + _attack_in(piece.converted_value)
        elif piece.api_role == "user" and context.awaits_response:
            context = context + piece.converted_value
    return context


def _attack_in(reply: str) -> str:
    """Return the attack in a reply of the attacker, which is JSON where PyRIT asked for it."""
    try:
        return str(parse_json(reply)[_ATTACK])
    except (ValueError, TypeError, KeyError):
        return reply


class AttackConverter(Converter):  # type: ignore[misc]
    """Replaces a prompt, which is the goal, by an attack that the trained attacker writes for it.

    Args:
        run: Folder of the run.
        checkpoint: Name of a folder in its ``checkpoints``.
        device: See `TrainedAttacker`.
        seed: Seed; with one, equal prompts get equal attacks.
    """

    SUPPORTED_INPUT_TYPES = ("text",)
    SUPPORTED_OUTPUT_TYPES = ("text",)

    def __init__(
        self,
        *,
        run: str,
        checkpoint: str = "last",
        device: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._attacker = TrainedAttacker(run, checkpoint=checkpoint, device=device)
        self._seed = seed

    def _build_identifier(self) -> ComponentIdentifier:
        return self._create_identifier(params={"attacker": self._attacker.name, "seed": self._seed})

    async def convert_async(self, *, prompt: str, input_type: Any = "text") -> ConverterResult:
        """Return the attack.

        Raises:
            ValueError: The input is no text, or the output of the attacker has no attack.
        """
        if not self.input_supported(input_type):
            raise ValueError(f"input_type={input_type!r}; only text can be attacked.")
        write = partial(self._attacker.next_message, [], goal=prompt, seed=self._seed)
        said = await asyncio.to_thread(write)
        if not said.strip():
            raise ValueError("the output of the attacker has no attack; convert again.")
        return ConverterResult(output_text=str(said), output_type="text")


__all__ = ["AttackConverter", "AttackerTarget"]
