"""Stochastic few-shot prompting of the attacker with earlier attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from random import Random
from typing import Any

from astra_rl.core.attack_files import ScoredAttack, read_attacks
from astra_rl.core.contracts import is_missing
from astra_rl.core.environment import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.infra.unicode import well_formed
from astra_rl.methods.ast_problem import ASTEnvironment


@named("few_shot")
class FewShotEnvironment(ASTEnvironment):
    """Tree environment whose attacker is prompted with few-shot examples of earlier attacks.

    Stochastic few-shot generation (Perez et al. 2022, arXiv 2202.03286, sec. 3.1): the examples of
    an episode are sampled without replacement with weights ``exp(reward / temperature)`` and
    appended to the attacker's brief as a numbered list that the attacker continues. Only the
    attacker sees them.

    Without a file the examples are the first attacks of the earlier experiences of the training
    itself, each once with its best reward; until there are `shots` of them the attacker gets none.
    Zero-shot generation and what follows it then share one budget of target calls. They are part of
    the state of a training. An evaluation has none.

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Number of attacks per context.
        tree_depth: Number of turns per episode.
        examples: Earlier attacks with their rewards, or the path of a file of them, see
            `read_attacks`. Attacks without a reward are ignored. The run export ``attacks`` writes
            such a file. Empty: attacks of the training itself.
        shots: Number of examples per episode, at least 1.
        temperature: Sampling temperature of the examples, above 0; infinity samples uniformly.

    Raises:
        ConfigurationError: The file cannot be read, fewer than `shots` examples have a reward, or a
            value is out of range; see also `ASTEnvironment`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 4,
        tree_depth: int = 1,
        *,
        examples: str | Sequence[ScoredAttack] = (),
        shots: int = 4,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(problem, prompts, tree_width, tree_depth)
        _check_draw(shots, temperature)
        self.examples = _usable(examples, shots) if examples else []
        self.found: dict[str, float] | None = None if examples else {}
        self.shots = shots
        self.temperature = temperature

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range and there are enough examples."""
        super().check_options(**options)
        _check_draw(options["shots"], options["temperature"])
        if options["examples"]:
            _usable(options["examples"], options["shots"])

    def expand(
        self, contexts: Sequence[str], seeds: Sequence[int], *, width: int
    ) -> list[Graph[str, str]]:
        """Generate one tree per context, each with its own few-shot examples."""
        prompted = [
            self._with_examples(Conversation.of(context), derive_seed(seed, "examples"))
            for context, seed in zip(contexts, seeds, strict=True)
        ]
        graphs = super().expand(prompted, seeds, width=width)
        for graph, context in zip(graphs, contexts, strict=True):
            graph.context = Conversation.of(context)  # without the examples
        return graphs

    def observe(self, graphs: Sequence[Graph[str, str]]) -> None:
        """Without a file, add the first attacks of an experience to the examples."""
        super().observe(graphs)
        if self.found is None:
            return
        for node in (node for graph in graphs for node in graph.children):
            attack, reward = well_formed(node.attack), float(node.reward)
            if attack.strip() and not is_missing(reward):
                self.found[attack] = max(reward, self.found.get(attack, reward))
        self._use_found()

    def state_dict(self) -> dict[str, Any]:
        """Return the attacks found, and the state of the curriculum."""
        return {**super().state_dict(), **({} if self.found is None else {"found": self.found})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        if self.found is not None:
            self.found = dict(state["found"])
            self._use_found()

    def _use_found(self) -> None:
        self.examples = [ScoredAttack("", *each) for each in (self.found or {}).items()]

    def _with_examples(self, opening: Conversation, seed: int) -> Conversation:
        if len(self.examples) < self.shots:
            return opening
        random = Random(seed)
        # Gumbel top-k trick: the k largest (log weight + Gumbel noise) are a weighted sample
        # without replacement.
        noisy = nsmallest(
            self.shots,
            (
                (-(each.reward / self.temperature - math.log(random.expovariate(1.0))), index)
                for index, each in enumerate(self.examples)
            ),
        )
        lines = [
            f"{number}. {' '.join(self.examples[index].attack.split())}"
            for number, (_, index) in enumerate(noisy, 1)
        ]
        return with_instructions(opening, "\n".join([*lines, f"{self.shots + 1}."]))


def with_instructions(
    opening: Conversation,
    text: str,
    facts: Mapping[str, str] | None = None,
    *,
    brief: str | None = None,
) -> Conversation:
    """Return a conversation with a text added to the attacker's brief, and further facts.

    Args:
        opening: The conversation.
        text: The text; may be empty.
        facts: The facts.
        brief: A brief in place of that of the conversation; None keeps it.
    """
    return Conversation(
        opening.prompt,
        turns=opening.turns,
        system=opening.system,
        brief="\n".join(part for part in (opening.brief if brief is None else brief, text) if part),
        facts={**opening.facts, **(facts or {})},
        separator=opening.separator,
    )


def _check_draw(shots: int, temperature: float) -> None:
    if shots < 1:
        raise ConfigurationError(f"shots={shots}; it must be at least 1.")
    if not temperature > 0:
        raise ConfigurationError(f"temperature={temperature}; it must be positive.")


def _usable(examples: str | Sequence[ScoredAttack], shots: int) -> list[ScoredAttack]:
    """Return the examples that have a reward and words; raise if they are fewer than `shots`."""
    given = read_attacks(examples) if isinstance(examples, str) else examples
    known = [each for each in given if not is_missing(each.reward) and each.attack.strip()]
    if len(known) < shots:
        raise ConfigurationError(
            f"examples: {len(known)} of {len(given)} attacks have a reward and text; at least "
            f"shots={shots} are needed. Give more examples or fewer shots."
        )
    return known
