"""Supervised fine-tuning on attacks: expert iteration and warm start."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any

import torch
from torch import Tensor

from astra_rl.algorithms.exploration import Exploration
from astra_rl.algorithms.losses import masked_mean, reduce_tokens, sequence_logprob
from astra_rl.algorithms.options import EXPLORATION, REPLAY
from astra_rl.algorithms.replay import Replay, ReplayEntry
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.attack_files import ScoredAttack, read_attacks
from astra_rl.core.collector import Collected, Collector
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_loss, checked_logprobs, is_missing, token_mask
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph, Node
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Conversation, context_key
from astra_rl.errors import ConfigurationError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count, CountOrZero, Decay, Range, Share, check_ranges
from astra_rl.infra.registry import named

ImitationStep = ScoredAttack
"""An attack to be imitated."""


@dataclass(frozen=True)
class ImitationBatch:
    """Several attacks, index-aligned."""

    contexts: Sequence[str]
    attacks: Sequence[str]

    def __len__(self) -> int:
        return len(self.contexts)


class Imitation(Algorithm[str, str, ImitationStep, ImitationBatch]):
    """Maximum-likelihood training (SFT) on attacks; the loss is the mean NLL per token.

    Args:
        problem: Computes log-probabilities of the attacker.
    """

    def flatten(self, graph: Graph[str, str]) -> Sequence[ImitationStep]:
        """Return one step per turn."""
        return [ImitationStep(node.context, node.attack, node.reward) for node in graph.nodes()]

    def collate_fn(self, steps: Sequence[ImitationStep]) -> ImitationBatch:
        """Collate attacks to a batch."""
        return ImitationBatch([step.context for step in steps], [step.attack for step in steps])

    def step(self, batch: ImitationBatch) -> tuple[Tensor, Metrics]:
        """Return the mean negative log-likelihood per attack, each a mean over its tokens."""
        logprobs = checked_logprobs(
            self.problem.get_attacker_logprobs, batch.contexts, batch.attacks, grad=True
        )
        mask = token_mask(logprobs, batch.attacks)
        weights = torch.ones(len(logprobs), device=logprobs.device)
        loss = reduce_tokens(-logprobs, mask, weights, reduce="sequence")
        check_loss(loss, source=type(self).__name__)
        return loss, {
            "loss": float(loss.detach()),
            "nll": float(masked_mean(-logprobs.detach(), mask)),
        }


@named("expert_iteration")
@document_options({**REPLAY, **EXPLORATION})
class ExpertIteration(Imitation):
    """Expert iteration (Anthony et al. 2017; best-of-n distillation): SFT on the best attacks.

    The best attacks of each set of siblings enter a replay buffer without near-duplicates; each
    experience trains on its own best attacks and on replayed ones.

    With a reward that pays only for new kinds of failure (`KindNovelty`) the buffer has one or two
    attacks of each kind that was found, and `rehearse` trains on all kinds alike, however often
    each was found. Experiences of the untrained attacker then find what the trained one no longer
    tries.

    Args:
        problem: Computes log-probabilities of the attacker.
        best: Maximum number of attacks taken from each set of siblings; at least 1.
        min_reward: Minimum reward of such an attack. None: the mean reward of the selected attacks.
        rehearse: Least number of attacks that an experience trains on, as far as the buffer has
            them; 0 trains on none if no attack was selected.
        untrained_share: Share of the experiences that the untrained attacker plays, in [0, 1].

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        best: Count = 1,
        min_reward: Annotated[float, Range()] | None = None,
        replay: CountOrZero = 1000,
        replay_share: Decay = 0.5,
        replay_similarity: Annotated[float, Range(gt=0, le=1)] = 0.8,
        rehearse: CountOrZero = 0,
        untrained_share: Share = 0.0,
        tempered_share: Share = 0.0,
        temperatures: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        super().__init__(problem)
        ExpertIteration.check_options(
            best=best, min_reward=min_reward, replay_share=replay_share, rehearse=rehearse
        )
        self.best = best
        self.min_reward = min_reward
        self.replay_share = replay_share
        self.rehearse = rehearse
        self.memory = Replay(replay, replay_similarity)
        self.collector = Exploration(tempered_share, *temperatures, untrained_share=untrained_share)
        self.collector.check_problem(problem)
        self._experiences = 0
        self._metrics: Metrics = {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range."""
        super().check_options(**options)
        Exploration.check_options(options)

    def flatten(self, graph: Graph[str, str]) -> Sequence[ImitationStep]:
        """Return the best attacks of each set of siblings; missing rewards are left out."""
        steps = []
        for siblings in graph.sibling_groups():
            known = [node for node in siblings if not is_missing(node.reward)]
            known.sort(key=lambda node: -node.reward)
            steps += [
                ImitationStep(node.context, node.attack, node.reward) for node in known[: self.best]
            ]
        return steps

    def prepare(self, steps: Sequence[ImitationStep]) -> Sequence[ImitationStep]:
        """Drop attacks below the minimum reward, and add replayed attacks."""
        random = Random(self._experiences)
        self._experiences += 1
        bar = self.min_reward
        if bar is None and steps:
            bar = sum(step.reward for step in steps) / len(steps)
        chosen = [step for step in steps if bar is None or step.reward >= bar]
        share = len(chosen) * self.replay_share / (1 - self.replay_share)
        wanted = max(round(share), self.rehearse - len(chosen))
        known = self.memory.entries
        remembered = random.sample(known, min(wanted, len(known)))
        self.memory.add(ReplayEntry(step.context, step.attack, step.reward) for step in chosen)
        self._metrics = {
            "chosen": float(len(chosen)),
            "replay/size": float(len(self.memory)),
            "replay/used": float(len(remembered)),
        }
        return [
            *chosen,
            *(ImitationStep(entry.context, entry.attack, entry.reward) for entry in remembered),
        ]

    def experience_metrics(self) -> Metrics:
        """Return the numbers of selected, stored and replayed attacks."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the replay buffer, and the number of experiences, which seeds its draws."""
        return {"experiences": self._experiences, "replay": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._experiences = state["experiences"]
        self.memory.load_state_dict(state["replay"])


class ImitationCollector(Collector):
    """Returns given attacks as episodes to train on; none is played, so no target is called.

    Args:
        steps: The attacks; one without a context gets an opening prompt of the environment.
    """

    def __init__(self, steps: Sequence[ImitationStep]) -> None:
        self.steps = list(steps)
        self.dealt = 0

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """See `Collector.collect`; each pass over the attacks is shuffled anew."""
        graphs = []
        for number in range(self.dealt, self.dealt + count):
            turn, place = divmod(number, len(self.steps))
            order = Random(derive_seed("given", turn)).sample(self.steps, len(self.steps))
            step = order[place]
            context = step.context or self._opening(environment, derive_seed(seed or 0, number))
            graphs.append(Graph(context, [Node(context, step.attack, "", step.reward, [])]))
        self.dealt += count
        return Collected([], graphs)

    def _opening(self, environment: Environment[Any, Any], seed: int) -> str:
        try:
            return Conversation.of(environment.choose_prompt(seed))
        except NotImplementedError as error:
            raise ConfigurationError(
                "an attack without a context needs an opening: "
                f"{error} Give each attack its context."
            ) from error


@named("warm_start")
class WarmStart(Imitation):
    """SFT on given attacks: those of a file, or the successful ones of an earlier run.

    SFT of a new attacker on the filtered attacks of a GFlowNet is the second stage of Lee et al.
    2024, arXiv 2405.18540, sec. 3.3; it is robust to the scale of the reward.

    Args:
        problem: Computes log-probabilities of the attacker.
        attacks: The attacks, with or without contexts, or the path of a file, see `read_attacks`.
            Required.
        min_reward: Minimum reward; attacks with an unknown reward are left out too. None takes all.
        min_logprob: Minimum log-probability under the baseline, in nats of the whole attack; 0 or
            less (Lee et al. use -100). None does not filter, and never runs the baseline.
        distinct: Whether only the best of attacks of one context that are equal up to case and
            white space is taken.

    Raises:
        ConfigurationError: The file cannot be read, or no attack is left.
    """

    collector: ImitationCollector

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        attacks: str | Sequence[str | ImitationStep],
        min_reward: float | None = None,
        min_logprob: Annotated[float, Range(le=0)] | None = None,
        distinct: bool = False,
    ) -> None:
        super().__init__(problem)
        check_ranges(WarmStart, {"min_logprob": min_logprob})
        kept = _kept(attacks, min_reward)
        self.collector = ImitationCollector(_distinct(kept) if distinct else kept)
        self.min_logprob = min_logprob
        self._metrics: Metrics = {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range, and some attack of the file is left."""
        super().check_options(**options)
        if "attacks" in options:
            _kept(options["attacks"], options.get("min_reward"))

    @classmethod
    def rounds_of_play(cls, **options: Any) -> int:
        """Return 0: it learns from given attacks."""
        return 0

    def prepare(self, steps: Sequence[ImitationStep]) -> Sequence[ImitationStep]:
        """Drop attacks that are too unlikely under the baseline."""
        if self.min_logprob is None or not steps:
            return steps
        attacks = [step.attack for step in steps]
        logprobs = checked_logprobs(
            self.problem.get_baseline_logprobs,
            [step.context for step in steps],
            attacks,
            grad=False,
        )
        # str drops the attacker's token ids: the baseline may have another vocabulary.
        mask = token_mask(logprobs, [str(attack) for attack in attacks])
        totals = sequence_logprob(logprobs, mask, reduce="sum").tolist()
        likely = [total >= self.min_logprob for total in totals]
        self._metrics = {"unlikely": likely.count(False) / len(steps)}
        return [step for step, kept in zip(steps, likely, strict=True) if kept]

    def experience_metrics(self) -> Metrics:
        """Return the share of attacks dropped as too unlikely, if `min_logprob` is set."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the number of attacks returned so far."""
        return {"dealt": self.collector.dealt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.collector.dealt = state["dealt"]


def _distinct(steps: Sequence[ImitationStep]) -> list[ImitationStep]:
    """Keep the best of equal attacks, in the order of the input."""
    best: dict[Hashable, tuple[float, int]] = {}
    for index, step in enumerate(steps):
        key = (context_key(step.context), " ".join(step.attack.casefold().split()))
        worth = -math.inf if is_missing(step.reward) else step.reward
        if key not in best or worth > best[key][0]:
            best[key] = (worth, index)
    return [steps[index] for index in sorted(index for _, index in best.values())]


def _kept(
    attacks: str | Sequence[str | ImitationStep], min_reward: float | None
) -> list[ImitationStep]:
    """Return the attacks with at least `min_reward`.

    Raises:
        ConfigurationError: The file cannot be read, or no attack is left.
    """
    given = read_attacks(attacks) if isinstance(attacks, str) else list(attacks)
    steps = [each if isinstance(each, ImitationStep) else ImitationStep("", each) for each in given]
    kept = [step for step in steps if min_reward is None or step.reward >= min_reward]
    if not kept:
        raise ConfigurationError(
            f"attacks: none of {len(steps)} is left (min_reward={min_reward}); give at least 1."
        )
    return kept
