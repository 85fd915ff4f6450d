"""Every part is one's own: problem, moderator, environment, algorithm and callback.

    python examples/custom_everything.py            # offline, some seconds
    python examples/custom_everything.py --smoke    # two steps

The target is a shop assistant made of one rule, and the attacker a table of logits over four
phrases, so that each part is as small as it can be. Replace any of them by what the library has.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from astra_rl import (
    Algorithm,
    ASTEnvironment,
    Graph,
    Moderator,
    Problem,
    Trainer,
    TrainingConfiguration,
)
from astra_rl.core.contracts import checked_logprobs
from astra_rl.core.seeding import current_row_seeds
from astra_rl.logging import logger
from astra_rl.testing import check_algorithm, check_environment, check_moderator, check_problem
from astra_rl.training.callbacks import AnyTrainer, StepMetrics, TrainerCallback

PHRASES = [" hello", " HELLO", " a question", " thanks"]


class Rudeness(Moderator[str, str]):
    """Scores whether the assistant sends a customer away."""

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Return 1.0 for a text that sends somebody away."""
        return [float("Go away" in text) for text in x]


class Shop(Problem[str, str]):
    """The assistant is rude to whoever writes in capitals."""

    def __init__(self) -> None:
        super().__init__(Rudeness())
        self.logits = torch.nn.Parameter(torch.zeros(len(PHRASES)))

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> list[str]:
        """Sample a phrase for each context, with the seed of its row."""
        weights = self.logits.softmax(0).tolist()
        seeds = current_row_seeds(len(contexts))
        return [Random(seed).choices(PHRASES, weights)[0] for seed in seeds]

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> list[str]:
        """Answer."""
        return [" Go away!" if text.endswith("HELLO") else " How nice." for text in contexts]

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return log-probabilities of phrases, of one token each: shape (B, 1)."""
        return self._scores(self.logits, continuations)

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return those of a customer, who is as likely to say any of the phrases."""
        return self._scores(torch.zeros(len(PHRASES)), continuations)

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return those of the attacker before the training."""
        return self.get_target_logprobs(contexts, continuations)

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the conversation after a turn."""
        return context + attack + response

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Return the moderator's score of each response."""
        return self.moderator.moderate(responses)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what is trained."""
        yield self.logits

    @staticmethod
    def _scores(logits: Tensor, continuations: Sequence[str]) -> Tensor:
        rows = [PHRASES.index(phrase) for phrase in continuations]
        return logits.log_softmax(0)[rows].unsqueeze(1)


class OpeningHours(ASTEnvironment):
    """Conversations of two turns, which begin with the time of the day."""

    def __init__(self, problem: Problem[str, str]) -> None:
        super().__init__(problem, ["Morning.", "Evening."], tree_width=4, tree_depth=2)


@dataclass(frozen=True)
class Best:
    """The best of several attacks on one context."""

    context: str
    attack: str


class CloneTheBest(Algorithm[str, str, Best, Sequence[Best]]):
    """Makes the best attack of each context more likely."""

    def flatten(self, graph: Graph[str, str]) -> Sequence[Best]:
        """Return the best attack of each group of siblings."""
        best = (max(group, key=lambda node: node.reward) for group in graph.sibling_groups())
        return [Best(node.context, node.attack) for node in best]

    def collate_fn(self, steps: Sequence[Best]) -> Sequence[Best]:
        """Return the batch."""
        return list(steps)

    def step(self, batch: Sequence[Best]) -> tuple[Tensor, dict[str, float]]:
        """Return minus the mean log-probability of the best attacks."""
        logprobs = checked_logprobs(
            self.problem.get_attacker_logprobs,
            [each.context for each in batch],
            [each.attack for each in batch],
            grad=True,
        )
        loss = -logprobs.sum(dim=1).mean()
        return loss, {"loss": float(loss.detach())}


class Watch(TrainerCallback):
    """Logs the reward of each step, and stops when all attacks succeed."""

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: dict[str, float]) -> None:
        """Log it."""
        logger.info("step %d  reward %.2f", step, logs["reward"])
        trainer.should_stop = logs["reward"] > 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="two steps only")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    problem = Shop()
    environment = OpeningHours(problem)
    algorithm = CloneTheBest(problem)
    check_moderator(problem.moderator, ["Go away!", "How nice."])
    check_problem(problem)
    check_environment(environment)
    check_algorithm(algorithm, environment.rollouts(range(4)))
    config = TrainingConfiguration(lr=0.1, training_steps=2 if options.smoke else 60, seed=0)
    Trainer(config, environment, algorithm, callbacks=[StepMetrics(), Watch()]).train()
    chances = zip(PHRASES, problem.logits.softmax(0).tolist(), strict=True)
    logger.info("%s", {phrase: round(chance, 2) for phrase, chance in chances})


if __name__ == "__main__":
    main()
