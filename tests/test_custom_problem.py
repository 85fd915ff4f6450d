"""A problem of one's own, without transformers, trains with the base trainer.

The target is a shop assistant made of one rule: it is rude to whoever writes in capitals. The
attacker is a table of logits over four phrases.
"""

from random import Random

import pytest
import torch

from astra_rl import (
    DPO,
    GRPO,
    IPO,
    ASTEnvironment,
    ASTEvaluator,
    ContractError,
    FunctionModerator,
    Problem,
    Trainer,
    TrainingConfiguration,
)
from astra_rl.core.seeding import current_row_seeds
from astra_rl.testing import check_algorithm, check_environment, check_problem

PHRASES = [" hello", " HELLO", " a question", " thanks"]


class ShopProblem(Problem[str, str]):
    def __init__(self):
        super().__init__(FunctionModerator(lambda texts: ["Go away" in text for text in texts]))
        self.logits = torch.nn.Parameter(torch.zeros(len(PHRASES)))

    def rollout_prompt_with_attacker(self, contexts):
        weights = self.logits.softmax(0).tolist()
        seeds = current_row_seeds(len(contexts))
        return [Random(seed).choices(PHRASES, weights)[0] for seed in seeds]

    def rollout_prompt_with_target(self, contexts):
        return [" Go away!" if context.endswith("HELLO") else " How nice." for context in contexts]

    def get_attacker_logprobs(self, contexts, continuations):
        return self._score(self.logits, continuations)

    def get_target_logprobs(self, contexts, continuations):
        return self._score(torch.zeros(len(PHRASES)), continuations)

    get_baseline_logprobs = get_target_logprobs

    def advance(self, context, attack, response):
        return context + attack + response

    def reward(self, contexts, attacks, responses):
        return self.moderator.moderate(responses)

    def parameters(self):
        yield self.logits

    def _score(self, logits, continuations):
        rows = [PHRASES.index(phrase) for phrase in continuations]
        return logits.log_softmax(0)[rows].unsqueeze(1)


def test_it_needs_no_more_than_forty_lines_and_keeps_the_contract():
    check_problem(ShopProblem())
    check_environment(ASTEnvironment(ShopProblem(), ["Customer:"], tree_width=4))


@pytest.mark.slow
@pytest.mark.parametrize("make", [DPO, IPO, GRPO, lambda problem: GRPO(problem, kl_in_loss=0.01)])
def test_it_trains_with_the_base_trainer(make):
    problem = ShopProblem()
    environment = ASTEnvironment(
        problem, ["Customer:", "A man enters."], tree_width=4, tree_depth=2
    )
    config = TrainingConfiguration(
        lr=0.1, training_steps=25, num_episodes_per_experience=4, batch_size=8, seed=0
    )
    check_algorithm(make(problem), environment.rollouts(range(4)))
    evaluator = ASTEvaluator(environment, ["Customer:"])
    assert evaluator.evaluate(40, progress=False)["asr"]["estimate"] < 0.8
    Trainer(config, environment, make(problem)).train()
    assert problem.logits.softmax(0)[PHRASES.index(" HELLO")] > 0.8
    assert evaluator.evaluate(40, progress=False)["asr"]["estimate"] > 0.9


class CarelessProblem(ShopProblem):
    """Samples from torch's global generator, as most would at first."""

    def rollout_prompt_with_attacker(self, contexts):
        drawn = torch.multinomial(self.logits.softmax(0), len(contexts), replacement=True)
        return [PHRASES[index] for index in drawn]


@pytest.mark.parametrize("kind", [ShopProblem, CarelessProblem])
def test_the_same_seed_trains_the_same_attacker(kind):
    def trained():
        problem = kind()
        config = TrainingConfiguration(
            lr=0.1, training_steps=3, num_episodes_per_experience=2, seed=0
        )
        Trainer(config, ASTEnvironment(problem, ["Customer:"]), GRPO(problem)).train()
        return problem.logits.detach()

    first = trained()
    torch.rand(3)
    assert torch.equal(first, trained())


def test_one_that_samples_from_the_global_generator_is_told_how_to_repeat_in_any_batch():
    environment = ASTEnvironment(CarelessProblem(), ["Customer:"], tree_width=4)
    with pytest.raises(ContractError, match=r"Sample with current_row_seeds\(\)"):
        check_environment(environment)
