"""A trained attacker by itself, for tools that run the target and the judge."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from astra_rl.config.loading import load_recorded_config
from astra_rl.config.schema import AttackerConfig
from astra_rl.core.seeding import derive_seed, row_seeds
from astra_rl.core.text import GOAL, Conversation, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.turn import Opening
from astra_rl.ext.transformers.generation import check_model, generate_turns
from astra_rl.ext.transformers.model_pool import ModelPool
from astra_rl.models.chat_template import template_time
from astra_rl.models.generation import generate
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.recorded import Recorded

Message = Mapping[str, Any]
"""One message of a chat: ``role`` and ``content``."""
_READ_FOR_BRIEF = 50
"""Recorded conversations from which the brief of a run is read."""


class TrainedAttacker:
    """The trained attacker of a run; no target, baseline or moderator is loaded.

    ```python
    attacker = TrainedAttacker("runs/first")
    attack = attacker.write([attacker.opening("Good evening.")])[0]
    ```

    It may be called from several threads; one writes at a time.

    Args:
        run: Folder of the run.
        checkpoint: Name of a folder in its ``checkpoints``.
        device: auto, cpu, cuda, cuda:N or mps; None is that of the run.

    Attributes:
        name: Name of the run.
        brief: Instructions of the attacker in the run, without the goal of a single prompt; None if
            it had none, or others for each prompt.

    Raises:
        ConfigurationError: The folder is no run, or its attacker was not trained.
        ModelError: The attacker cannot be loaded.
    """

    def __init__(
        self, run: str | Path, *, checkpoint: str = "last", device: str | None = None
    ) -> None:
        folder = open_run_folder(run)
        config = load_recorded_config(folder.config)
        model = folder.checkpoints / checkpoint
        if not isinstance(config.attacker, AttackerConfig) or not model.is_dir():
            raise ConfigurationError(
                f"{folder.path} has no trained attacker: {model} is missing. Give the folder of a "
                "run that 'astra-rl train' finished."
            )
        loading = config.loading if device is None else replace(config.loading, device=device)
        settings = asdict(loading)
        pool = ModelPool(
            settings["device"],
            settings["dtype"],
            settings["trust_remote_code"],
            settings["attn_implementation"],
        )
        pair = pool.load(str(model))
        self.name = folder.path.resolve().name
        self.sampling = config.attacker.sampling()
        check_model("attacker", pair.model, self.sampling)
        self._model, self._extract = pair.model, config.attacker.extract
        with template_time(folder.started):
            self._renderer = pair.renderer(
                "attacker",
                chat=config.attacker.chat,
                chat_template_kwargs=config.attacker.chat_template_kwargs,
                stop_at_newline=config.attacker.stop_at_newline,
            )
        self._lock = threading.Lock()
        self.brief = _brief_of(openings_of(run, most=_READ_FOR_BRIEF))

    def opening(
        self, prompt: str = "", *, goal: str | None = None, system: str | None = None
    ) -> Conversation:
        """Return a conversation to begin, with the brief of the run.

        Args:
            prompt: Text that both sides see before the first attack.
            goal: What the attacker is to bring about; it reads it at the end of its brief.
            system: System message of the target; moderators see it, the attacker does not.
        """
        brief = "\n\n".join(part for part in (self.brief, goal) if part)
        return Conversation(
            prompt,
            system=system,
            brief=brief or None,
            facts={GOAL: goal} if goal else {},
            separator="\n",
        )

    def write(
        self, conversations: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Utterance]:
        """Return the next attack of each conversation.

        Args:
            conversations: Conversations in which it is the attacker's turn.
            seeds: Seed of each attack; with a seed, a conversation gives the same attack in any
                batch. None draws them.

        Returns:
            One attack each; an `astra_rl.core.text.NoAttack` where the output has none.
        """
        contexts = [Conversation.of(each) for each in conversations]
        for context in contexts:
            if context.awaits_response:
                raise ConfigurationError(
                    "the conversation ends in an attack that has no response yet; give one in "
                    "which it is the attacker's turn."
                )
        with self._lock, _seeded(seeds):
            written = generate_turns(
                self._model, self._renderer, contexts, self.sampling, generate, None
            )
        return written if self._extract is None else [self._extract(each) for each in written]

    def next_message(
        self, messages: Sequence[Message], *, goal: str | None = None, seed: int | None = None
    ) -> Utterance:
        """Return the next message of the user in a chat; see `conversation_of`.

        Args:
            messages: The chat so far. If its last message is of the user, it is what the
                conversation opens with, and the attack is to be appended to it.
            goal: See `opening`.
            seed: See `write`. The number of messages is mixed in, so that turns differ.
        """
        context = conversation_of(messages, self.opening(goal=goal))
        seeds = None if seed is None else [derive_seed(seed, "message", len(messages))]
        return self.write([context], seeds)[0]


def _seeded(seeds: Sequence[int] | None) -> Any:
    return contextlib.nullcontext() if seeds is None else row_seeds(seeds)


def conversation_of(messages: Sequence[Message], opening: Conversation) -> Conversation:
    """Return the conversation of a chat whose messages of the user are the attacks.

    Args:
        messages: Messages of the roles system, user and assistant, in order. A message of the user
            that nothing answers yet is the text that the conversation opens with.
        opening: Its brief and facts are those of the conversation.

    Raises:
        ConfigurationError: A role is unknown, a content is no text, or the order is another one.
    """
    system = opening.system
    turns: list[str] = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise ConfigurationError(
                f"message {number}: its content is {type(content).__name__}; give a text."
            )
        if role in ("system", "developer") and not turns:
            system = content
        elif role == ("assistant" if len(turns) % 2 else "user"):
            turns.append(content)
        elif role in ("user", "assistant") and turns:
            turns[-1] += f"\n{content}"  # two messages of one side are one turn
        else:
            raise ConfigurationError(
                f"message {number} has the role {role!a}; a chat begins with an optional message "
                "of the system, and goes on with user and assistant in turns."
            )
    prompt = opening.prompt
    if len(turns) == 1:
        prompt = turns.pop()
    elif len(turns) % 2:
        raise ConfigurationError(
            "the last message of the chat is of the user, and an attack is a message of the user; "
            "give a chat that ends with the assistant."
        )
    return Conversation(
        prompt,
        turns=turns,
        system=system,
        brief=opening.brief,
        facts=opening.facts,
        separator="\n",
    )


def openings_of(run: str | Path, phase: str = "after", *, most: int | None = None) -> list[Opening]:
    """Return the different openings of the recorded conversations of a run, in order.

    Args:
        run: Folder of the run.
        phase: Phase of the run.
        most: Number of conversations to read; None reads all.

    Raises:
        ConfigurationError: The folder is no run, or has no such phase.
    """
    with Recorded(open_run_folder(run), phase) as recorded:
        attempts = itertools.islice(recorded.attempts(), most)
        return list({attempt.opening.id: attempt.opening for attempt in attempts}.values())


def _brief_of(openings: Sequence[Opening]) -> str | None:
    """Return the brief that all openings share, without their goals."""
    found = set()
    for opening in openings:
        brief = opening.brief or ""
        goal = opening.facts.get(GOAL)
        found.add((brief.removesuffix(goal).rstrip() if goal else brief) or None)
    return found.pop() if len(found) == 1 else None
