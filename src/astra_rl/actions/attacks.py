"""Attacks that an evaluation sends as they are: from a file, or the goals of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from astra_rl.core.attack_files import ScoredAttack, read_attacks
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.text import GOAL, REQUEST, Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.turn import Opening
from astra_rl.methods.replay import replay_attacks
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.recorded import Recorded

DIRECT = "direct"
"""Name of the baseline whose attacks are the goals of the prompts."""


@dataclass(frozen=True)
class GivenAttack:
    """An attack that is sent as it is.

    Attributes:
        context: The state before the attack.
        attack: Its text.
        prompt_id: Identifies the prompt that it is an attempt at.
    """

    context: Conversation
    attack: str
    prompt_id: str


class GivenAttacks(Environment[str, str]):
    """Plays one conversation of one turn per given attack; its number is the seed.

    Args:
        problem: Its target answers; its attacker is not used.
        attacks: The attacks.
        seed: Seed of the responses.
    """

    def __init__(
        self, problem: Problem[str, str], attacks: Sequence[GivenAttack], *, seed: int
    ) -> None:
        super().__init__(problem)
        self.attacks, self.seed = attacks, seed

    def rollout(self, seed: int | None = None) -> Graph[str, str]:
        """Send the attack with this number; None sends the first."""
        return self.eval_rollouts([seed])[0]

    def eval_rollouts(
        self, seeds: Sequence[int | str | None], trials: Sequence[int] | None = None
    ) -> list[Graph[str, str]]:
        """Send the attacks with these numbers, in any order; None is number 0."""
        numbers = [int(seed or 0) for seed in seeds]
        sent = [self.attacks[number] for number in numbers]
        contexts, attacks = [each.context for each in sent], [[each.attack] for each in sent]
        return replay_attacks(self.problem, contexts, attacks, seed=self.seed, numbers=numbers)


def given_attacks(attacks: str | Path, openings: Sequence[Conversation]) -> list[GivenAttack]:
    """Return attacks together with the contexts that they are sent in.

    Args:
        attacks: ``"direct"``, or a file that `read_attacks` reads. Attacks without a context are
            distributed over the openings in order.
        openings: Held-out opening contexts.

    Raises:
        ConfigurationError: The file cannot be read, has no attack, or an attack is empty.
    """
    if attacks == DIRECT:
        return _checked(
            [
                GivenAttack(_with_prompt(each, ""), direct_request(each), Opening.of(each).id)
                for each in openings
            ],
            "direct: prompts with neither a goal nor a text of their own cannot be sent as they "
            "are. Give a file of attacks, or another baseline",
        )
    steps = read_attacks(attacks)
    if not steps:
        raise ConfigurationError(f"{str(attacks)!a} holds no attack.")
    contexts = [
        Conversation.of(step.context or openings[index % len(openings)])
        for index, step in enumerate(steps)
    ]
    return _checked(
        [
            GivenAttack(context, step.attack, Opening.of(context).id)
            for context, step in zip(contexts, steps, strict=True)
        ],
        f"{str(attacks)!a}: a blank attack asks the target nothing. Remove it",
    )


def direct_request(opening: Conversation) -> str:
    """Return the text that asks for the goal of an opening as it is; its prompt without a goal."""
    return opening.facts.get(REQUEST) or opening.facts.get(GOAL) or opening.prompt


def _checked(attacks: list[GivenAttack], advice: str) -> list[GivenAttack]:
    """Return attacks if all of them ask the target something.

    Raises:
        ConfigurationError: Some are blank: the reply to an empty message says nothing of a target.
    """
    blank = [at for at, each in enumerate(attacks, 1) if not each.attack.strip()]
    if blank:
        raise ConfigurationError(
            f"{len(blank)} of {len(attacks)} attacks are empty, the first is number {blank[0]}. "
            f"{advice}."
        )
    return attacks


def _with_prompt(opening: Conversation, prompt: str) -> Conversation:
    """Return an opening with another prompt and without the attacker's brief."""
    return Conversation(
        prompt, system=opening.system, facts=opening.facts, separator=opening.separator
    )


def untrained_attacks(folder: RunFolder, *, least: int) -> Iterator[ScoredAttack]:
    """Yield the scored attacks of the first training step, which the untrained attacker made.

    Args:
        folder: Folder of the run.
        least: Smallest number of attacks that is enough.

    Raises:
        ConfigurationError: There are fewer.
    """
    found = 0
    with Recorded(folder, "training") as recorded:
        for attempt in recorded.attempts():
            if attempt.step != 1:
                continue
            for turn, exchange in zip(attempt.turns, attempt.exchanges(), strict=True):
                score = turn.score(attempt.judge)
                if score is not None and turn.attack.strip():
                    found += 1
                    yield ScoredAttack(exchange.context, turn.output, score)
    if found < least:
        raise ConfigurationError(
            f"{folder.path}: {found} attacks of the first training step have a score, and {least} "
            "examples are needed. Use a file of examples with the environment 'few_shot'."
        )
