"""Size and cost of a hardening, before anything is sent or loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, cycle, islice
from pathlib import Path

from astra_rl.actions.harden_inputs import Benign, check, read_source
from astra_rl.actions.preference_pairs import benign_requests
from astra_rl.config.estimate import (
    EstimateRow,
    estimate,
    estimate_given,
    needed,
    total_of,
    training_size,
)
from astra_rl.config.parts import resolve_moderator
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import ModeratorConfig, RunConfig
from astra_rl.core.text import Conversation
from astra_rl.targets.budget import Budget


@dataclass(frozen=True)
class PhaseEstimate:
    """Upper bound of what a phase plays, trains and calls.

    Attributes:
        name: The phase.
        episodes: Conversations, or trees of conversations.
        steps: Training steps of an attacker, or optimizer steps of a target.
        calls: Calls of each endpoint.
    """

    name: str
    episodes: int
    steps: int
    calls: Sequence[EstimateRow]


@dataclass(frozen=True)
class HardeningEstimate:
    """Upper bound of a hardening.

    Attributes:
        phases: Its phases, in order.
        budget: Limits of the hardening.
    """

    phases: Sequence[PhaseEstimate]
    budget: Budget

    @property
    def calls(self) -> list[EstimateRow]:
        """Calls of each endpoint in all phases."""
        rows = [row for phase in self.phases for row in phase.calls]
        names = dict.fromkeys(row.name for row in rows)
        return [total_of([row for row in rows if row.name == name], name) for name in names]

    def describe_budget(self) -> list[str]:
        """Return, for each limit of the budget, a sentence that says where it is reached."""
        return list(self._described())

    def _described(self) -> Iterator[str]:
        by_phase = [needed(phase.calls) for phase in self.phases]
        for name, most in asdict(self.budget).items():
            if most is None or name not in by_phase[0]:
                continue
            so_far = list(accumulate(each[name] for each in by_phase))
            ends = next((n for n, used in enumerate(so_far) if used > most), None)
            yield (
                f"budget {name}={most:.12g} of at most {so_far[-1]:.12g} that the hardening needs: "
                + ("it suffices" if ends is None else f"it ends in {self.phases[ends].name}")
            )


def estimate_hardening(
    source: str | Path | RunConfig, *, overrides: Sequence[str] = ()
) -> HardeningEstimate:
    """Return an upper bound of what `harden` plays, trains and calls.

    Phases that an interrupted hardening has completed are included; a first attacker that is given
    as a run is not.

    Args:
        source: See `harden`.
        overrides: See `harden`.

    Raises:
        ConfigurationError: As in `harden`.
    """
    given = read_source(source, None, overrides)
    plan = check(given.config)
    benign = Benign.of(given.config)
    phases = list(_phases(given.config, plan, benign, trains_first=given.first is None))
    return HardeningEstimate(phases, plan.budget)


def _phases(
    config: RunConfig, plan: Plan, benign: Benign, *, trains_first: bool
) -> Iterator[PhaseEstimate]:
    options, openings = config.harden, plan.openings
    held_out = plan.planned_conversations
    size = training_size(plan)
    evaluations = held_out * (1 + int(plan.evaluation.before))
    for number in range(options.rounds + 1):
        if number:
            pairs = 2 * options.failures * number
            steps = math.ceil(pairs / options.fine_tuning.batch_size) * options.fine_tuning.epochs
            judged = options.failures * number * len(options.safe_replies)
            calls = _of_moderator(config, config.moderator, openings.train, judged)
            yield PhaseEstimate(f"fine-tuning target {number}", 0, steps, calls)
        if number or trains_first:
            yield PhaseEstimate(
                f"training attacker {number}",
                size.episodes + evaluations,
                plan.training.steps,
                estimate(plan),
            )
        if number == 0:
            requests = benign_requests(
                benign.scenario.rows["train"], openings.train, options.failures
            )
            contexts = [each.context for each in requests]
            calls = _of_refusals(config, benign, contexts)
            calls += _of_moderator(config, config.moderator, contexts, len(contexts))
            yield PhaseEstimate("benign replies of target 0", len(contexts), 0, calls)
    count = options.rounds * (options.rounds + 1)
    once = estimate(plan, training=False)
    yield PhaseEstimate("cross-attacks", count * held_out, 0, _times(once, count))
    rows = benign.scenario.rows["test"]
    requests = benign_requests(rows, openings.test, max(len(rows), len(openings.test)))
    calls = _of_refusals(config, benign, [each.context for each in requests])
    targets = options.rounds + 1
    yield PhaseEstimate(
        "refusals of benign requests", targets * len(requests), 0, _times(calls, targets)
    )


def _of_refusals(config: RunConfig, benign: Benign, contexts: Sequence[str]) -> list[EstimateRow]:
    """Return the calls of the moderator of the benign scenario, under its place."""
    rows = _of_moderator(config, benign.section, contexts, len(contexts))
    return [replace(row, name="harden.benign") for row in rows]


def _of_moderator(
    config: RunConfig, section: ModeratorConfig, contexts: Sequence[str], count: int
) -> list[EstimateRow]:
    """Return the calls of a moderator for replies in these contexts, which may be repeated."""
    if not resolve_moderator(section).endpoints():
        return []
    evaluation = config.evaluation.model_copy(update={"judge": None})
    plan = resolve(config.model_copy(update={"moderator": section, "evaluation": evaluation}))
    given = [Conversation.of(each) for each in islice(cycle(contexts), count)]
    longest = "?" * (4 * plan.trained.max_new_tokens)  # four characters to a token
    return [row for row in estimate_given(plan, given, [[longest]] * count) if row.requests]


def _times(rows: Iterable[EstimateRow], count: int) -> list[EstimateRow]:
    return [total_of([row] * count, row.name) for row in rows]
