"""Estimate the probability of a rare failure in ordinary use by splitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_rl.config.experiment import build_problem, ordinary_use
from astra_rl.config.loading import load_config
from astra_rl.config.resolve import EVALUATED_TOGETHER, resolve
from astra_rl.core.contracts import is_missing
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Conversation, Exchange, finish_reasons
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.turn import Opening
from astra_rl.evaluation.stats.splitting import (
    RareProbability,
    SplitRun,
    rare_probability,
    split_once,
)
from astra_rl.methods.ast_environment import ASTEnvironment, ends_conversation
from astra_rl.models.chat_template import template_time
from astra_rl.moderators.scoring import score_exchanges
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.spending import spending
from astra_rl.targets.ledger import current_ledger

RUNS = 8
"""Independent runs of the algorithm; their spread gives the interval."""
MOST_SHOWN = 50
"""Failures that are written beside the estimate."""


@dataclass(frozen=True)
class RareFailure:
    """Estimate of the probability of a rare failure.

    Attributes:
        found: The estimate.
        path: File of the result, with some of the failures.
    """

    found: RareProbability
    path: Path


def rare_failure(
    run: str | Path,
    *,
    conversations: int = 400,
    target: str | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> RareFailure:
    """Estimate the probability of failure if the baseline writes the user's turns, by splitting.

    No trained attacker is needed. Each of `RUNS` runs starts with conversations from held-out
    prompts drawn at random; see `astra_rl.evaluation.stats.splitting`.

    Args:
        run: Folder of the run.
        conversations: Number of conversations at the start of all runs together, at least 16.
        target: Folder or hub id; None uses the target of the run.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the result; None uses the folder of the run.

    Raises:
        ConfigurationError: There are too few conversations, or the judge gave no score for a turn.
        BudgetSpentError: A budget is spent. Replies are cached; the same call continues from them.
        AstraError: A model cannot be loaded.
    """
    if conversations < 2 * RUNS:
        raise ConfigurationError(f"conversations={conversations}; at least {2 * RUNS}.")
    folder = open_run_folder(run)
    config = load_config(folder.config, overrides, target=target)
    plan = resolve(config)
    destination = folder if output is None else RunFolder(output)
    with template_time(folder.started):
        problem = ordinary_use(build_problem(plan), plan.evaluation.ordinary_brief)
        judge = plan.evaluation_judge.load()
    openings, depth = plan.openings.test, config.environment.tree_depth or 1
    prompts = [Opening.of(each).id for each in openings]
    runs: list[SplitRun[_State]] = []
    with spending([plan], destination.path, occasion="rare") as ledger:
        for number in range(RUNS):
            seed = derive_seed(config.seed, "splitting", number)
            generator = np.random.default_rng(seed)
            drawn = generator.integers(len(openings), size=conversations // RUNS)
            turns = _Turns(problem, judge, openings, depth, seed)
            runs.append(
                split_once(
                    [(openings[row], 0) for row in drawn],
                    turns,
                    threshold=config.evaluation.threshold,
                    generator=generator,
                    prompts=[prompts[row] for row in drawn],
                )
            )
    found = rare_probability(runs)
    path = destination.path / "probability_rare.json"
    failures = [failure.states[-1][0] for each in runs for failure in each.failures]
    destination.write_json(
        path,
        {
            "target": config.target.name,
            "baseline": plan.baseline,
            "threshold": config.evaluation.threshold,
            "spent": ledger.as_dict(),
            **found.as_dict(),
            "failures": [
                {"prompt": each.prompt, "turns": list(each.turns)} for each in failures[:MOST_SHOWN]
            ],
        },
    )
    return RareFailure(found, path)


_State = tuple[Conversation, int]
"""A conversation and its number of turns."""


class _Turns:
    """Plays and scores one turn of each of some conversations; no two calls have equal seeds."""

    def __init__(
        self,
        problem: Problem[str, str],
        judge: Moderator[Any, Any],
        openings: Sequence[Conversation],
        depth: int,
        seed: int,
    ) -> None:
        self.environment = ASTEnvironment(problem, openings, 1, 1)
        self.problem, self.judge, self.depth, self.seed = problem, judge, depth, seed
        self.calls = 0

    def __call__(self, states: Sequence[_State]) -> list[tuple[_State, float, bool]]:
        """Return the next state, the score of the turn, and whether the conversation has ended."""
        found: list[tuple[_State, float, bool]] = []
        for start in range(0, len(states), EVALUATED_TOGETHER):
            current_ledger().check()
            found += self._batch(states[start : start + EVALUATED_TOGETHER])
        return found

    def _batch(self, states: Sequence[_State]) -> list[tuple[_State, float, bool]]:
        self.calls += 1
        seeds = [derive_seed(self.seed, self.calls, row) for row in range(len(states))]
        graphs = self.environment.expand([state for state, _ in states], seeds, width=1)
        nodes = [graph.children[0] for graph in graphs]
        exchanges = [Exchange(node.context, node.attack, node.response) for node in nodes]
        scores = score_exchanges(self.judge, exchanges)
        found: list[tuple[_State, float, bool]] = []
        for (_, turns), node, score in zip(states, nodes, scores, strict=True):
            over = ends_conversation(node.attack, node.response)
            failed_call = "error" in finish_reasons(node.response)
            if is_missing(score) and (failed_call or not over):
                missing = "call of the target failed" if failed_call else "judge gave no score"
                raise ConfigurationError(
                    f"the {missing} for a turn, and splitting needs a score of every turn: one "
                    "that is not known is not safe. Use 'astra-rl probability' without "
                    "--splitting, which leaves such conversations out and counts them."
                )
            state = Conversation.of(self.problem.advance(node.context, node.attack, node.response))
            level = -math.inf if is_missing(score) else float(score)
            found.append(((state, turns + 1), level, over or turns + 1 >= self.depth))
        return found
