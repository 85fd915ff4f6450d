"""Reward watch in a real training: a moderator that can be hacked, and a judge that cannot."""

import math

import pytest

from astra_rl import GRPO, ASTEnvironment, Trainer, TrainingConfiguration
from astra_rl.core.moderator import Score
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.reward_watch import RewardWatch
from astra_rl.moderators import CachedModerator, FunctionModerator
from astra_rl.testing import ScriptedModerator, ToyProblem
from astra_rl.training.callbacks import TrainerCallback, UnscoredCounts, WatchReward


class Logged(TrainerCallback):
    """Keeps the log of each step."""

    def __init__(self):
        self.logs = []

    def on_step_end(self, trainer, step, logs):
        self.logs.append(dict(logs))


def train(judge, steps=30):
    moderator = CachedModerator(ScriptedModerator({"boom": 1.0}))
    problem = ToyProblem(moderator)
    environment = ASTEnvironment(problem, ["Hello"], tree_width=8, tree_depth=1)
    config = TrainingConfiguration(
        lr=0.1, training_steps=steps, num_episodes_per_experience=4, batch_size=32, seed=0
    )
    watch = WatchReward(moderator, judge, watch=RewardWatch(window=8, words=1))
    logged = Logged()
    Trainer(config, environment, GRPO(problem), callbacks=[watch, logged]).train()
    return logged.logs, watch.watch


@pytest.mark.slow
def test_a_reward_that_is_hacked_is_warned_of_with_the_words_that_do_it():
    logs, watch = train(ScriptedModerator({"harm": 1.0}))
    assert logs[-1]["watch/gap"] > 0.8
    assert watch.warning is not None
    assert "'boom'" in watch.warning


@pytest.mark.slow
def test_a_reward_that_the_judge_shares_is_not():
    logs, watch = train(ScriptedModerator({"boom": 1.0}))
    assert logs[-1]["watch/judge"] > 0.8
    assert watch.warning is None


def test_the_judge_is_asked_about_no_more_turns_than_it_was_said_to_be():
    judge = ScriptedModerator({})
    moderator = ScriptedModerator({})
    environment = ASTEnvironment(ToyProblem(), ["Hello"], tree_width=3, tree_depth=2)
    nodes = [node for graph in environment.rollouts([0, 1]) for node in graph.nodes()]
    callback = WatchReward(moderator, judge, turns=5, seed=1)
    callback.compare(1, nodes)
    assert len(judge.calls[0]) == 5
    assert judge.calls == moderator.calls
    again = WatchReward(moderator, judge, turns=5, seed=1)
    again.compare(1, nodes)
    assert judge.calls[0] == judge.calls[1]
    assert callback.compare(2, []) == {}
    callback.compare(3, nodes[:2])
    assert len(judge.calls[-1]) == 2


def test_what_could_not_be_scored_is_counted_by_reason_and_step():
    def score(texts):
        return [Score.missing("too hard") if "x" in text else math.nan for text in texts]

    moderator = CachedModerator(FunctionModerator(score))
    callback = UnscoredCounts(moderator)
    moderator.moderate(["x", "xx", "y"])
    assert callback.new_counts() == {"unscored/no reason given": 1.0, "unscored/too hard": 2.0}
    assert callback.new_counts() == {}
    moderator.moderate(["x"])
    assert callback.new_counts() == {"unscored/too hard": 1.0}
    assert UnscoredCounts(ScriptedModerator({})).new_counts() == {}


def test_a_hook_that_would_judge_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="turns=0"):
        WatchReward(ScriptedModerator({}), ScriptedModerator({}), turns=0)
