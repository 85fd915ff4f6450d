"""Episodes that are played while earlier ones are learned from, with older weights."""

import copy
import itertools
import math
import random
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import pytest
import torch

from astra_rl import (
    DAPO,
    DPO,
    GRPO,
    PPO,
    RLOO,
    Graph,
    Node,
    PolicyGradient,
    Trainer,
    TrainingConfiguration,
    Utterance,
)
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.estimators import MonteCarloReturn
from astra_rl.algorithms.losses import PolicyLoss
from astra_rl.core.environment import Environment
from astra_rl.core.seeding import current_row_seeds, derive_seed
from astra_rl.core.turns import waiting
from astra_rl.errors import (
    BudgetSpentError,
    ConfigurationError,
    ContractError,
    EndpointError,
    TrainingError,
)
from astra_rl.methods import ASTEnvironment
from astra_rl.methods.curriculum import UpperConfidence
from astra_rl.testing import ToyProblem, ToyValueProblem
from astra_rl.training.callbacks import DrawOpponent, TrainerCallback, TrainingStates
from astra_rl.training.states import load_state

STEPS = 6
_frozen = ContextVar("frozen logits", default=None)


class Served:
    """An attacker that is sampled by an engine with versions of its weights, which takes time.

    The reward counts the experiences that it has observed, so an order of events that is not the
    same in every run shows.
    """

    pause = staticmethod(lambda: None)
    fails_at = ()
    """Calls of the sampler that fail, counted from 1."""

    def __init__(self, **options):
        super().__init__(**options)
        self.observed, self.calls = 0, 0

    def frozen_attacker(self):
        logits = self.attacker.detach().clone()

        @contextmanager
        def block():
            token = _frozen.set(logits)
            yield
            _frozen.reset(token)

        return block

    def rollout_prompt_with_attacker(self, contexts):
        logits = _frozen.get()
        if logits is None:
            logits = self.attacker.detach()
        table, seeds = logits.log_softmax(0), current_row_seeds(len(contexts))
        with waiting():
            self.pause()
        self.calls += 1
        if self.calls in self.fails_at:
            raise EndpointError(f"call {self.calls} failed")
        attacks = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.multinomial(table.exp(), 2, replacement=True, generator=generator)
            text = "".join(f" {self.words[int(index)]}" for index in drawn)
            attacks.append(
                Utterance(text, token_ids=drawn.tolist(), logprobs=table[drawn].tolist())
            )
        return attacks

    def reward_terms(self, contexts, attacks, responses):
        rewards = [
            each + 0.01 * self.observed * text.count("r")
            for each, text in zip(self.reward(contexts, attacks, responses), attacks, strict=True)
        ]
        return rewards, [{"observed": float(self.observed)} for _ in contexts]

    def observe(self, graphs):
        self.observed += 1

    def reward_state(self):
        return {"observed": self.observed}

    def load_reward_state(self, state):
        self.observed = state["observed"]


class ServedToy(Served, ToyProblem):
    """A policy over two words."""


class ServedValueToy(Served, ToyValueProblem):
    """The same with a value function."""


class Watch(TrainerCallback):
    """Keeps the weights before each step, and the episodes and metrics of each."""

    def __init__(self, stop_after=None):
        self.weights, self.graphs, self.logs, self.stop_after = [], [], [], stop_after

    def on_step_begin(self, trainer, step):
        self.weights.append(trainer.algorithm.problem.attacker.detach().clone())

    def on_experience(self, trainer, graphs):
        self.graphs.append(list(graphs))

    def on_step_end(self, trainer, step, logs):
        self.logs.append(logs)
        if step == self.stop_after:
            trainer.should_stop = True


MAKERS = {
    "grpo": lambda problem: GRPO(problem, kl_in_loss=0.1, epochs=2, old_logprobs="corrected"),
    "dapo": lambda problem: DAPO(problem, old_logprobs="corrected"),
    "ppo": lambda problem: PPO(problem, old_logprobs="corrected"),
    "dpo": DPO,
}


def trainer_of(staleness, make=MAKERS["grpo"], callbacks=(), problem=None, **settings):
    problem = problem or ServedToy()
    environment = ASTEnvironment(problem, ["one", "two", "three"], tree_width=3, tree_depth=2)
    environment.curriculum = UpperConfidence()
    config = TrainingConfiguration(
        **{
            "lr": 0.3,
            "optimizer": "adam",
            "batch_size": 18,
            "training_steps": STEPS,
            "num_episodes_per_experience": 3,
            "seed": 5,
            "max_staleness": staleness,
            **settings,
        }
    )
    return Trainer(config, environment, make(problem), callbacks=callbacks)


def trained(staleness, **options):
    watch = Watch()
    trainer = trainer_of(staleness, callbacks=[watch], **options)
    trainer.train()
    return trainer, watch


def texts_of(watch):
    return [[(str(n.attack), n.reward) for g in each for n in g.nodes()] for each in watch.graphs]


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_each_experience_is_sampled_with_the_weights_of_so_many_steps_before(staleness):
    """The log-probabilities of the attacks say which weights sampled them."""
    _, watch = trained(staleness)
    assert len(watch.graphs) == STEPS
    for step, graphs in enumerate(watch.graphs):
        table = watch.weights[max(0, step - staleness)].log_softmax(0)
        for node in (node for graph in graphs for node in graph.nodes()):
            assert node.attack.logprobs == tuple(table[list(node.attack.token_ids)].tolist())
    ages = [each.get("sampling/staleness") for each in watch.logs]
    assert ages == ([None] * STEPS if staleness == 0 else [min(k, staleness) for k in range(STEPS)])


def test_an_evaluation_between_steps_attacks_with_the_present_weights():
    """And no episode is played meanwhile."""
    found = []

    class Evaluates(TrainerCallback):
        def on_step_end(self, trainer, step, logs):
            problem = trainer.algorithm.problem
            table = problem.attacker.detach().log_softmax(0)
            calls = problem.calls
            graphs = trainer.environment.eval_rollouts([step])
            assert problem.calls == calls + 2
            for node in (node for graph in graphs for node in graph.nodes()):
                expected = tuple(table[list(node.attack.token_ids)].tolist())
                found.append(node.attack.logprobs == expected)

    trainer_of(2, callbacks=[Evaluates()]).train()
    assert found
    assert all(found)


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_reward_and_environment_have_seen_the_same_experiences_in_every_run(staleness):
    """An experience begins after the one `staleness` steps before it was observed."""
    _, watch = trained(staleness)
    for step, graphs in enumerate(watch.graphs):
        seen = {node.reward_terms["observed"] for graph in graphs for node in graph.nodes()}
        assert seen == {max(0, step - staleness + (staleness > 0))}


def test_a_staleness_of_zero_is_a_training_without_it(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread"))
    first, second = trainer_of(0), trainer_of(0)
    first.train()
    state = first.state_dict()
    assert "ahead" not in state
    for step in range(STEPS):  # what the loop did before
        for batch in second.harness.experience(derive_seed(5, "step", step)):
            second._optimizer_step([batch])
    torch.testing.assert_close(
        first.algorithm.problem.attacker, second.algorithm.problem.attacker, rtol=0, atol=0
    )


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("staleness", [1, 3])
def test_a_training_is_what_a_loop_in_one_thread_computes(staleness, name):
    """The reference knows only the definition: which weights and which state play what."""
    kind = ServedValueToy if name == "ppo" else ServedToy
    found, _ = trained(staleness, make=MAKERS[name], problem=kind())
    loop = trainer_of(0, make=MAKERS[name], problem=kind())
    harness, problem, ready = loop.harness, loop.algorithm.problem, []

    def play(number):
        seed = derive_seed(5, "step", number)
        with problem.frozen_attacker()():
            ready.append(
                harness.algorithm.collector.collect(
                    harness.environment, seed, harness.num_episodes_per_experience
                )
            )

    for number in range(staleness):
        play(number)
    for step in range(STEPS):
        harness.collect = lambda seed: ready.pop(0)
        harness.on_observed = lambda number=step + staleness: number < STEPS and play(number)
        loop.training_step(derive_seed(5, "step", step))
    for ours, theirs in zip(
        problem.parameters(), found.algorithm.problem.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("staleness", [1, 2])
def test_which_thread_is_faster_does_not_change_the_result(staleness):
    """Also not that of code that draws from the global generator."""

    class Noisy(GRPO):
        def step(self, batch):
            loss, logs = super().step(batch)
            draws.append(torch.rand(1).item())
            return loss * (1 + 0.1 * torch.rand(1).item()), logs

    results = []
    for sampler, update in ((0.0, 0.0), (0.004, 0.0), (0.0, 0.004), (None, None)):
        chance = random.Random(0)
        draws = []

        def rest(seconds, chance=chance):
            time.sleep(chance.uniform(0, 0.004) if seconds is None else seconds)

        problem = ServedToy()
        problem.pause = lambda rest=rest, seconds=sampler: rest(seconds)

        def slow(problem, rest=rest, seconds=update):
            algorithm = Noisy(problem, old_logprobs="corrected")
            step = algorithm.step
            algorithm.step = lambda batch: (rest(seconds), step(batch))[1]
            return algorithm

        torch.manual_seed(3)
        trainer, watch = trained(staleness, make=slow, problem=problem)
        weights = trainer.algorithm.problem.attacker.detach().tolist()
        results.append((weights, texts_of(watch), draws, torch.rand(1).item()))
    assert all(each == results[0] for each in results)


def test_sampler_and_update_are_busy_at_the_same_time():
    """Each waits for the other to be there: a training that plays first would never end."""
    meeting = threading.Barrier(2, timeout=60)
    problem = ServedToy()
    plays = Counter()

    def pause():
        plays["calls"] += 1
        if 2 < plays["calls"] <= 2 * STEPS and plays["calls"] % 2:  # the first turn of an episode
            meeting.wait()

    problem.pause = pause

    def make(problem):
        algorithm = GRPO(problem, old_logprobs="corrected")
        step, seen = algorithm.step, Counter()

        def meet(batch):
            number = trainer.completed_steps
            seen[number] += 1
            if seen[number] == 1 and number < STEPS - 1:
                with waiting():  # its update needs no turn
                    meeting.wait()
            return step(batch)

        algorithm.step = meet
        return algorithm

    trainer = trainer_of(1, make=make, problem=problem)
    trainer.train()
    assert trainer.completed_steps == STEPS


# The gradient, by enumeration.

WORDS = 6
PAIRS = list(itertools.product(range(WORDS), repeat=2))


class EveryAttack(Environment):
    """Its one episode has all attacks there are, with their log-probabilities when sampled."""

    def rollout(self, seed=None):
        logits = _frozen.get()
        table = (self.problem.attacker.detach() if logits is None else logits).log_softmax(0)
        attacks = [
            Utterance(
                "".join(f" {self.problem.words[index]}" for index in pair),
                token_ids=pair,
                logprobs=table[list(pair)].tolist(),
            )
            for pair in PAIRS
        ]
        return Graph("c", [Node("c", each, each, reward_of(str(each))) for each in attacks])


def reward_of(text):
    return float(sum(map(ord, text)) % 5)


class Expected(PolicyGradient):
    """Weighs each attack by its probability when sampled: the loss is its own expectation."""

    def __init__(self, problem, **options):
        loss = PolicyLoss(surrogate="clip", reduce="sequence_sum")
        super().__init__(problem, MonteCarloReturn(Credit("turn")), loss, **options)

    def flatten(self, graph):
        return [
            replace(step, weight=math.exp(sum(step.attack.logprobs)))
            for step in super().flatten(graph)
        ]

    @classmethod
    def is_off_policy(cls, **options):
        return True


def ascent(staleness, **options):
    """The weights before each step of a training by the algorithm's expected gradient."""
    problem, watch = ServedToy(), Watch()
    config = TrainingConfiguration(
        lr=0.2, optimizer="sgd", batch_size=len(PAIRS), training_steps=6, max_grad_norm=None,
        num_episodes_per_experience=1, seed=0, max_staleness=staleness,
    )  # fmt: skip
    trainer = Trainer(config, EveryAttack(problem), Expected(problem, **options), callbacks=[watch])
    trainer.train()
    return [*watch.weights, problem.attacker.detach()]


def exact_ascent():
    """Ascent of the expected reward of what the present weights sample."""
    problem = ServedToy()
    logits, found = problem.attacker.detach().clone(), []
    rewards = torch.tensor(
        [reward_of("".join(f" {problem.words[each]}" for each in pair)) for pair in PAIRS]
    )
    for _ in range(7):
        found.append(logits)
        logits = logits.clone().requires_grad_(True)
        table = logits.log_softmax(0)
        probabilities = torch.stack([table[a] + table[b] for a, b in PAIRS]).exp()
        (probabilities * rewards).sum().backward()
        logits = (logits + 0.2 * logits.grad).detach()
    return found


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_the_corrected_gradient_of_stale_attacks_is_that_of_the_present_policy(staleness):
    exact = exact_ascent()
    options = {"old_logprobs": "corrected", "correction_cap": 1e6}
    for step, found in enumerate(ascent(staleness, **options)):
        torch.testing.assert_close(found, exact[step], rtol=1e-4, atol=1e-5)
    if staleness:  # what the age costs without the correction
        biased = ascent(staleness, old_logprobs="scored")
        assert (biased[-1] - exact[-1]).abs().max() > 0.005


# Stop and resume.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "dapo"])
@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_a_training_that_stops_after_any_step_resumes_to_the_same_weights(
    staleness, name, tmp_path
):
    make = MAKERS[name]
    whole, expected = trained(staleness, make=make)
    for stop in range(1, STEPS):
        folder = tmp_path / str(stop)
        first = Watch(stop_after=stop)
        trainer_of(staleness, make, [first, TrainingStates(folder, every=0)]).train()
        step, state = load_state(folder)
        assert step == stop
        assert len(state["ahead"]["played"]) == min(staleness, STEPS - stop)
        then = Watch()
        trainer = trainer_of(staleness, make, [then])
        trainer.load_state_dict(state)
        trainer.train()
        assert texts_of(first) + texts_of(then) == texts_of(expected)
        assert first.logs + then.logs == expected.logs
        assert torch.equal(trainer.algorithm.problem.attacker, whole.algorithm.problem.attacker)


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("how", ["resumed", "train again"])
def test_a_play_that_fails_is_raised_after_the_step_and_repeated_as_it_would_have_been(
    staleness, how, tmp_path
):
    """Whichever call of the sampler it is: two in each experience."""
    whole, expected = trained(staleness)
    for call in range(1, 2 * STEPS + 1):
        problem, watch, folder = ServedToy(), Watch(), tmp_path / str(call)
        problem.fails_at = (call,)
        states = TrainingStates(folder, every=0)
        trainer = trainer_of(staleness, callbacks=[watch, states], problem=problem)
        with pytest.raises(EndpointError, match=f"call {call} failed"):
            trainer.train()
        experience = (call - 1) // 2
        # What was played before it was learned from, as far as it is older.
        assert trainer.completed_steps == max(0, experience - staleness + 1)
        assert load_state(folder)[0] == trainer.completed_steps
        if how == "resumed":
            trainer = trainer_of(staleness, callbacks=[then := Watch()])
            trainer.load_state_dict(load_state(folder)[1])
            watch.graphs += then.graphs
            then.graphs = watch.graphs
        trainer.train()
        assert texts_of(watch) == texts_of(expected)
        assert torch.equal(trainer.algorithm.problem.attacker, whole.algorithm.problem.attacker)


def test_a_failed_play_of_a_training_that_stops_is_logged_and_kept(tmp_path, caplog):
    whole, _ = trained(1)
    problem = ServedToy()
    problem.fails_at = (7,)  # in the fourth experience, during the third step
    callbacks = [Watch(stop_after=3), TrainingStates(tmp_path, every=0)]
    trainer_of(1, callbacks=callbacks, problem=problem).train()
    assert "training step 4 could not be played (EndpointError: call 7 failed)" in caplog.text
    trainer = trainer_of(1)
    trainer.load_state_dict(load_state(tmp_path)[1])
    trainer.train()
    assert torch.equal(trainer.algorithm.problem.attacker, whole.algorithm.problem.attacker)


@pytest.mark.parametrize("error", [BudgetSpentError("requests", 20, 20), RuntimeError("a defect")])
def test_any_error_of_a_play_is_raised_in_the_main_thread(error):
    problem = ServedToy()

    def pause():
        if problem.calls == 5:
            raise error

    problem.pause = pause
    trainer = trainer_of(1, problem=problem)
    with pytest.raises(type(error), match=re.escape(str(error))):
        trainer.train()
    assert trainer.completed_steps == 2
    assert threading.active_count() == 1 or not [
        thread for thread in threading.enumerate() if thread.name.startswith("play-")
    ]


def test_an_error_of_an_update_waits_for_the_play_and_loses_nothing_of_it():
    problem, released = ServedToy(), []
    trainer = trainer_of(1, problem=problem)
    step = trainer.algorithm.step

    def fails(batch):
        if trainer.completed_steps == 2 and not released:
            released.append(1)
            raise RuntimeError("in an update")
        return step(batch)

    trainer.harness.step = None
    trainer._gradients.loss_of = fails
    with pytest.raises(RuntimeError, match="in an update"):
        trainer.train()
    assert not [each for each in threading.enumerate() if each.name.startswith("play-")]
    assert [each["number"] for each in trainer.state_dict()["ahead"]["played"]] == [2, 3]
    calls = problem.calls
    trainer.train()
    assert problem.calls - calls == 2 * (STEPS - 4)  # experiences 2 and 3 are not played again


def test_an_interrupt_while_the_play_is_waited_for_is_raised_and_the_play_is_kept(monkeypatch):
    problem = ServedToy()
    trainer = trainer_of(1, problem=problem)
    join, joins = threading.Thread.join, []

    def interrupted(thread, timeout=None):
        if thread.name.startswith("play-"):
            joins.append(thread.name)
            if len(joins) == 3:
                raise KeyboardInterrupt
        return join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert joins == ["play-0", "play-1", "play-2"]
    assert trainer.completed_steps == 1  # the second step learned, but was not recorded
    calls = problem.calls
    trainer.state_dict()  # waits for the play
    assert problem.calls - calls <= 2
    assert [each["number"] for each in trainer.state_dict()["ahead"]["played"]] == [1, 2]
    trainer.train()
    assert trainer.completed_steps == STEPS
    numbers = [int(name.removeprefix("play-")) for name in dict.fromkeys(joins)]
    assert numbers == list(range(STEPS))  # none is played twice


def test_a_longer_training_continues_after_its_end():
    trainer, watch = trained(2)
    trainer.config.training_steps = STEPS + 3
    trainer.train()
    ages = [each["sampling/staleness"] for each in watch.logs[STEPS:]]
    assert ages == [0, 1, 2]


# What is refused.


def test_a_state_with_more_experiences_in_flight_than_allowed_is_refused(tmp_path):
    trainer_of(2, callbacks=[Watch(stop_after=3), TrainingStates(tmp_path, every=0)]).train()
    state = load_state(tmp_path)[1]
    for staleness in (0, 1):
        with pytest.raises(TrainingError, match=r"has 2 experiences .* max_staleness=2 or more"):
            trainer_of(staleness).load_state_dict(state)
    trainer = trainer_of(4)
    trainer.load_state_dict(state)
    trainer.train()
    assert trainer.completed_steps == STEPS


def test_an_attacker_that_is_sampled_from_the_trained_weights_is_refused():
    trainer = trainer_of(1, problem=ToyProblem())
    with pytest.raises(ConfigurationError, match=r"rollout\.attacker: vllm.*max_staleness: 0"):
        trainer.train()
    assert trainer.completed_steps == 0


@pytest.mark.parametrize(
    "make", [GRPO, lambda problem: RLOO(problem, old_logprobs="scored")], ids=["grpo", "rloo"]
)
def test_a_loss_that_is_not_corrected_is_refused(make):
    with pytest.raises(ConfigurationError, match="old_logprobs: corrected"):
        trainer_of(1, make)


def test_shards_processes_and_loops_of_subclasses_are_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match="1 processes and shards=2"):
        trainer_of(1, shards=2)

    class Own(Trainer):
        def training_step(self, seed):
            return super().training_step(seed)

    problem = ServedToy()
    config = TrainingConfiguration(max_staleness=1)
    environment = ASTEnvironment(problem, ["one"])
    with pytest.raises(ConfigurationError, match="Own overrides training_step"):
        Own(config, environment, MAKERS["grpo"](problem))


def test_opponents_that_are_drawn_step_by_step_are_refused():
    trainer = trainer_of(1, callbacks=[DrawOpponent(lambda seed: None, 0)])
    with pytest.raises(ConfigurationError, match="opponents are drawn step by step"):
        trainer.train()


def test_attacks_without_log_probabilities_cannot_be_corrected_and_are_refused():
    class Silent(ServedToy):
        def rollout_prompt_with_attacker(self, contexts):
            return [str(each) for each in super().rollout_prompt_with_attacker(contexts)]

    trainer = trainer_of(1, problem=Silent())
    with pytest.raises(ContractError, match="no log-probabilities of the weights that sampled"):
        trainer.train()
    assert trainer.completed_steps == 1  # the first is as old as the weights


@pytest.mark.parametrize("place", [0, -1], ids=["the first", "the last"])
def test_episodes_of_own_classes_are_refused_before_anything_is_learned(place):
    class OwnGraph(Graph):
        pass

    class Own(ASTEnvironment):
        def rollouts(self, seeds):
            played = super().rollouts(seeds)
            played[place] = OwnGraph(played[place].context, played[place].children)
            return played

    problem = ServedToy()
    config = TrainingConfiguration(max_staleness=1, training_steps=2)
    trainer = Trainer(config, Own(problem, ["one"]), MAKERS["grpo"](problem))
    with pytest.raises(ContractError, match=r"OwnGraph .* nor saved with its state"):
        trainer.train()
    assert trainer.completed_steps == 0


def test_a_state_that_is_loaded_replaces_a_play_that_an_interrupt_left(monkeypatch):
    trainer = trainer_of(1)
    trainer.config.training_steps = 2
    trainer.train()
    trainer.config.training_steps = STEPS
    saved = copy.deepcopy(trainer.state_dict())
    join, joins = threading.Thread.join, []

    def interrupted(thread, timeout=None):
        joins.append(thread.name)
        if thread.name == "play-4":
            raise KeyboardInterrupt
        return join(thread, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    trainer.load_state_dict(saved)
    assert [each["number"] for each in trainer.state_dict()["ahead"]["played"]] == [
        each["number"] for each in saved["ahead"]["played"]
    ]
    trainer.train()
    assert trainer.completed_steps == STEPS
