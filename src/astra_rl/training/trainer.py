"""The training loop."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic

import torch

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import ActionT, BatchT, Metrics, StateT, StepT
from astra_rl.core.contracts import is_missing
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.out_of_memory import is_out_of_memory
from astra_rl.core.seeding import derive_seed, fresh_seed, generator_states, restore_generators
from astra_rl.distributed.ranks import is_raised_by_all, join, raised_by_all
from astra_rl.errors import (
    AstraError,
    BudgetSpentError,
    ConfigurationError,
    EndpointError,
    NonFiniteLossError,
    TrainingError,
    UnscoredError,
)
from astra_rl.logging import logger
from astra_rl.training.ahead import PlayAhead, check_staleness
from astra_rl.training.callback import TrainerCallback, check_counts, named
from astra_rl.training.config import OPTIMIZERS, TrainingConfiguration
from astra_rl.training.division import divide
from astra_rl.training.harness import Harness
from astra_rl.training.memory_warning import warn_if_short_of_memory
from astra_rl.training.precision import load_optimizer_state
from astra_rl.training.replicas import check_replicas, share_state

__all__ = ["Trainer", "TrainingConfiguration"]


class Trainer(Generic[StateT, ActionT, StepT, BatchT]):
    """Collects experiences, computes the loss and updates the attacker.

    By itself it does not evaluate, save or log. Callbacks do, see `astra_rl.training.callbacks`; or
    a subclass that overrides the hooks `on_train_begin`, `on_step_end`, `on_train_end`,
    `on_train_failed`, or `train`. The hooks of this class call the callbacks, so an override calls
    ``super()`` if there are any.

    An optimizer step whose loss or gradient is not finite is skipped, with a warning; after
    `TrainingConfiguration.max_nonfinite_losses` of them in a row the training fails. It also fails
    after `TrainingConfiguration.max_unscored_steps` consecutive steps without a valid reward.

    Started with torchrun or accelerate, a training is divided among the processes: each builds the
    same trainer, plays a part of the episodes and computes a part of the gradients. The weights
    stay equal. Callbacks run in the first process only, except those with
    `TrainerCallback.every_process`; overridden hooks run in all. See docs/scaling.md.

    Args:
        config: Hyperparameters.
        environment: Plays the episodes.
        algorithm: Computes the loss.
        callbacks: Receive the events of the training, in this order.

    Attributes:
        harness: Collects the episodes and batches them.
        optimizer: Optimizer of the problem's trainable parameters; learning-rate schedulers may be
            built on it.
        callbacks: A list, which a subclass may extend in its constructor.
        completed_steps: Training steps done so far.
        unscored_steps: Consecutive training steps, up to the latest, without a valid reward.
        should_stop: Set it to end the training after the step in progress.
        ranks: The processes of the training; ``ranks.is_first`` in the one that writes files.

    Raises:
        ConfigurationError: The problem has no trainable parameters; or several processes were
            started together, and a subclass overrides `train` or `training_step`.
    """

    def __init__(
        self,
        config: TrainingConfiguration,
        environment: Environment[StateT, ActionT],
        algorithm: Algorithm[StateT, ActionT, StepT, BatchT],
        *,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.ranks = join()
        self.config = config
        self.environment = environment
        self.algorithm = algorithm
        self.callbacks = list(callbacks)
        for each in self.callbacks:
            if not isinstance(each, TrainerCallback):
                raise ConfigurationError(
                    f"callbacks: {each!r} given; each must be an instance of a subclass of "
                    "TrainerCallback."
                )
        self._check_loop()
        self._division = division = divide(config, environment, self.ranks)
        self.harness = Harness(
            division.environment(environment),
            algorithm,
            config.num_episodes_per_experience,
            batch_size=config.batch_size,
            on_collected=self._on_collected,
        )
        self.harness.scoring = division.scoring
        trained = [p for p in algorithm.problem.parameters() if p.requires_grad]
        if not trained:
            raise ConfigurationError(
                f"{type(algorithm.problem).__name__}.parameters() yields nothing that requires "
                "grad; there is nothing to train."
            )
        self.optimizer = division.optimizer(
            trained, OPTIMIZERS.load(config.optimizer), **config.optimizer_options()
        )
        self._gradients = division.gradients(algorithm, self.harness.step, self.optimizer)
        self.completed_steps = 0
        self._ahead = PlayAhead(
            self.harness,
            config.max_staleness,
            seed_of=self._step_seed,
            completed_steps=lambda: self.completed_steps,
            training_steps=lambda: self.config.training_steps,
        )
        self.should_stop = False
        self.unscored_steps = 0
        self._has_learned = True
        self._nonfinite = 0
        self._failure: Exception | None = None

    def train(self) -> None:
        """Run `config.training_steps` training steps, or until `should_stop`.

        Steps that are already completed count. `should_stop` stays set; while it is, no step is
        made, with a warning.

        `on_train_failed` is called before one of these errors is raised.

        Raises:
            NonFiniteLossError: Too many consecutive losses were not finite.
            UnscoredError: Too many consecutive steps had no valid reward.
            TrainingError: Another reason why training cannot continue.
            BudgetSpentError: A budget was spent while episodes were played.
            EndpointError: An endpoint kept failing while episodes were played.
            ReplicaError: The processes of the training differ from each other.
            ProcessLostError: Another process of the training has ended.
            ProcessFailedError: Another process of the training failed.
        """
        try:
            self._train()
        except BaseException as error:
            self.ranks.leave_unless_agreed(error)
            self._tell_after_failure(lambda each: each.close())
            raise
        with self._hook(), contextlib.ExitStack() as closed:
            for each in reversed(self._told()):
                closed.callback(each.close)

    def _train(self) -> None:
        share_state(self.ranks, self)
        self._warn_of_no_steps()
        if self.completed_steps < self.config.training_steps:
            problem, tokens = self.algorithm.problem, self.config.micro_batch_tokens
            warn_if_short_of_memory(problem, self.optimizer, tokens)
        with self._hook():
            self.on_train_begin()
        try:
            while self.completed_steps < self.config.training_steps and not self._stops():
                self._train_step()
        except (TrainingError, BudgetSpentError, EndpointError) as error:
            self._failure = error
            with self._division.answering(is_raised_by_all(error)):
                self.on_train_failed()
            raise
        self._ahead.warn_of_failure()
        with self._hook():
            self.on_train_end()

    @contextlib.contextmanager
    def _hook(self) -> Iterator[None]:
        """Context of a hook: errors are raised by all, and the first process may save a state."""
        with self.ranks.together(), self._division.answering():
            yield

    def _check_loop(self) -> None:
        """Raise if a step cannot be divided among processes, or played ahead, as configured.

        Raises:
            ConfigurationError: It cannot; a subclass has a training loop of its own, for instance.
        """
        staleness = self.config.max_staleness
        check_staleness(staleness, processes=self.ranks.size, shards=self.config.shards)
        own = [
            name
            for name in ("train", "training_step")
            if getattr(type(self), name) is not getattr(Trainer, name)
        ]
        if own and self.ranks.size > 1:
            raise ConfigurationError(
                f"{type(self).__name__} overrides {own[0]}, and {self.ranks.size} processes were "
                "started; only the training loop of Trainer divides a step among them. Use its "
                "hooks or callbacks, or start one process."
            )
        if own and staleness:
            raise ConfigurationError(
                f"{type(self).__name__} overrides {own[0]}, and max_staleness is {staleness}; only "
                "the training loop of Trainer plays ahead. Use its hooks or callbacks, or "
                "max_staleness=0."
            )
        if staleness and not self.algorithm.is_off_policy(**vars(self.algorithm)):
            raise ConfigurationError(
                f"max_staleness={staleness}: {type(self.algorithm).__name__} learns from attacks "
                "of older weights, and its loss is not corrected for that. Set old_logprobs: "
                "corrected if it has that option, or use max_staleness: 0."
            )

    def _stops(self) -> bool:
        """Whether to stop: if `should_stop` is set in any process, it is in all."""
        self.should_stop = self.ranks.any(self.should_stop)
        return self.should_stop

    def _warn_of_no_steps(self) -> None:
        steps = self.config.training_steps
        if self.completed_steps >= steps:
            logger.info("all %d training steps are completed; no step is made", steps)
        elif self.should_stop:
            logger.warning(
                "should_stop is set, so no training step is made; %d of %d are completed. Set it "
                "to False to continue.",
                self.completed_steps,
                steps,
            )

    def _train_step(self) -> None:
        with self._hook():
            self.on_step_begin(self.completed_steps + 1)
        try:
            logs = self.training_step(self._step_seed(self.completed_steps))
        finally:
            self._ahead.settle()
        logs = {**logs, **self._ahead.metrics()}
        self.completed_steps += 1
        self._ahead.drop_learned()
        self._count_unscored_steps()
        check_replicas(self.ranks, self)
        with self._hook():
            self.on_step_end(self.completed_steps, logs)
        self._check_scored()

    def _on_collected(self, graphs: Sequence[Graph[StateT, ActionT]]) -> None:
        with self._hook():
            self.on_experience(graphs)

    def _told(self) -> list[TrainerCallback]:
        """Return the callbacks that run in this process, see `TrainerCallback.every_process`."""
        return [each for each in self.callbacks if self.ranks.is_first or each.every_process]

    def training_step(self, seed: int | None) -> Metrics:
        """Collect one experience and learn from all of it.

        Every `gradient_accumulation_steps` batches make one optimizer step; so does a shorter last
        group. Within a group each batch is weighted by `Algorithm.weight`, so the update equals
        that of the whole group as one batch.

        Returns:
            Means over the batches of the metrics of the algorithm, and ``skipped_updates``, the
            number of optimizer steps skipped because of a loss or gradient that was not finite.
        """
        batches = iter(self.harness.experience(seed))
        logs: list[Metrics] = []
        skipped = 0
        while group := list(itertools.islice(batches, self.config.gradient_accumulation_steps)):
            step_logs, done = self._optimizer_step(group)
            logs.extend(step_logs)
            skipped += not done
        self._has_learned = bool(logs)
        return {**mean_metrics(logs), "skipped_updates": float(skipped)}

    def on_train_begin(self) -> None:
        """Called once before the first step."""
        for each in self._told():
            each.on_train_begin(self)

    def on_step_begin(self, step: int) -> None:
        """Called before each training step, counted from 1."""
        for each in self._told():
            each.on_step_begin(self, step)

    def on_experience(self, graphs: Sequence[Graph[StateT, ActionT]]) -> None:
        """Called with the episodes of a step before the algorithm learns from them."""
        for each in self._told():
            each.on_experience(self, graphs)

    def on_step_end(self, step: int, logs: Metrics) -> None:
        """Called after each training step, counted from 1; callbacks may add to `logs`."""
        for each in self._told():
            each.on_step_end(self, step, logs)

    def on_evaluate(self, step: int, report: Mapping[str, Any], *, is_best: bool) -> None:
        """Called after each evaluation, see `TrainerCallback.on_evaluate`."""
        for each in self._told():
            each.on_evaluate(self, step, report, is_best)

    def on_save(self, step: int) -> None:
        """Called before a training state is written, see `TrainerCallback.on_save`."""
        for each in self._told():
            each.on_save(self, step)

    def on_train_end(self) -> None:
        """Called once after the last step, when no error ended the training."""
        for each in self._told():
            each.on_train_end(self)

    def on_train_failed(self) -> None:
        """Called before an error ends the training, see `train`.

        The weights are those of the last optimizer step that was finite.
        """
        failure = self._failure
        assert failure is not None
        self._tell_after_failure(lambda each: each.on_train_failed(self, failure))

    def _tell_after_failure(self, tell: Callable[[TrainerCallback], None]) -> None:
        for each in self._told():
            try:
                tell(each)
            except Exception as error:  # it must not hide why the training failed
                logger.error(
                    "callback %s failed after the training did: %s: %s",
                    type(each).__name__,
                    type(error).__name__,
                    error,
                )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the remaining training depends on, for `save_state`.

        Call it between training steps. Episodes and batches depend on the seed and the number of
        the step alone; the states of the global random generators are included for other code that
        draws from them.

        With ``sharding: fsdp`` on several processes the state is gathered, and returned in the
        first. Callbacks and hooks call it there alone; outside of them all processes do.
        """
        trained = (p for p in self.algorithm.problem.parameters() if p.requires_grad)
        return {
            "weights": [p.detach() for p in trained],
            "optimizer": self.optimizer.state_dict(),
            **self.controller_state(),
        }

    def controller_state(self) -> dict[str, Any]:
        """Return what `state_dict` does, without weights and the state of the optimizer."""
        problem = self.algorithm.problem
        return {
            "completed_steps": self.completed_steps,
            "nonfinite": self._nonfinite,
            "unscored_steps": self.unscored_steps,
            "algorithm": self.algorithm.state_dict(),
            "algorithm_type": type(self.algorithm).__name__,
            "reward": problem.reward_state(),
            "environment": self.environment.state_dict(),
            "generators": generator_states(),
            **({"ahead": self._ahead.state_dict()} if self.config.max_staleness else {}),
            "callback_names": list(named(self.callbacks)),
            "callbacks": {
                name: saved
                for name, each in named(self.callbacks).items()
                if (saved := each.state_dict())
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` returned.

        The state of a callback is found by its `TrainerCallback.state_key`, else by the name of its
        class, and among several of a class by their order. A callback without a saved state starts
        anew; a saved state without its callback is ignored with a warning.

        Weights and optimizer states of another floating dtype are converted.

        Raises:
            TrainingError: The state is of another model, optimizer, algorithm or reward, or of
                another number of callbacks of one class, or has values that no state has.
        """
        with _of_another("run", None, self):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        problem = self.algorithm.problem
        trained = [p for p in problem.parameters() if p.requires_grad]
        shapes = [tuple(p.shape) for p in trained]
        if shapes != [tuple(each.shape) for each in state["weights"]]:
            raise TrainingError(
                "the saved state is of another model: its trained weights have other shapes."
            )
        for parameter, saved in zip(trained, state["weights"], strict=True):
            parameter.copy_(saved)
        load_optimizer_state(self.optimizer, state["optimizer"], trained, state["weights"])
        self.load_controller_state(state)

    def load_controller_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `controller_state` returned; see `load_state_dict`."""
        problem = self.algorithm.problem
        with _of_another("algorithm", state.get("algorithm_type"), self.algorithm):
            self.algorithm.load_state_dict(state["algorithm"])
        with _of_another("reward", None, problem):
            problem.load_reward_state(state["reward"])
        if saved_environment := state.get("environment"):  # not in states of earlier versions
            with _of_another("environment", None, self.environment):
                self.environment.load_state_dict(saved_environment)
        self._ahead.load_state_dict(state.get("ahead", {}))
        # Version 1 of the format had the generator of torch only.
        restore_generators(state.get("generators") or {"torch": state["generator"]})
        self.completed_steps = _count(state["completed_steps"])
        self._nonfinite = _count(state["nonfinite"])
        # The cause of an UnscoredError is fixed before a resume, so the count restarts.
        unscored = _count(state.get("unscored_steps", 0))
        self.unscored_steps = unscored if unscored < self.config.max_unscored_steps else 0
        check_counts(state.get("callback_names", ()), self.callbacks)  # not in earlier versions
        callbacks = named(self.callbacks)
        for name, saved in state.get("callbacks", {}).items():
            if name in callbacks:
                with _of_another("callback", name, callbacks[name]):
                    callbacks[name].load_state_dict(saved)
            elif self.ranks.is_first:
                logger.warning("the saved state of callback %s is ignored: no such callback", name)

    def _step_seed(self, step: int) -> int | None:
        seed = self.config.seed
        if seed is None and self.ranks.size > 1:
            seed = int(self.ranks.share(fresh_seed()))
        return None if seed is None else derive_seed(seed, "step", step)

    def _optimizer_step(self, group: Sequence[BatchT]) -> tuple[list[Metrics], bool]:
        """Update the weights; return the logs, and whether the update was made."""
        logs, finite = self._gradients.compute(group)
        norm = self._gradients.clip(self.config.max_grad_norm)
        finite = finite and math.isfinite(norm)
        if finite:
            self.optimizer.step()
            self._nonfinite = 0
            for step_logs in logs:
                step_logs.setdefault("grad_norm", norm)
        self.optimizer.zero_grad()
        if not finite:
            self._count_nonfinite()
        return logs, finite

    def _count_unscored_steps(self) -> None:
        turns = self.algorithm.turns_to_score(self.harness.graphs)
        rewards = [node.reward for node in turns]
        # Imitation learns without rewards.
        if self._has_learned or any(not is_missing(reward) for reward in rewards):
            self.unscored_steps = 0
        elif rewards:
            self.unscored_steps += 1
            logger.warning(
                "training step %d: no valid reward; nothing was learned",
                self.completed_steps,
            )

    def _check_scored(self) -> None:
        if self.unscored_steps >= self.config.max_unscored_steps:
            error = UnscoredError(
                f"no valid reward in {self.unscored_steps} consecutive training steps, up to step "
                f"{self.completed_steps}. The warnings above, or unscored/... in the metrics, give "
                "the reasons; fix the moderator or the other parts of the reward, and resume."
            )
            raise raised_by_all(error)

    def _count_nonfinite(self) -> None:
        self._nonfinite += 1
        step = self.completed_steps + 1
        logger.warning(
            "training step %d: the loss or a gradient is not finite; the update is skipped", step
        )
        if self._nonfinite >= self.config.max_nonfinite_losses:
            error = NonFiniteLossError(
                f"no finite loss in {self._nonfinite} consecutive optimizer steps, up to training "
                f"step {step}. The weights are those of the last finite one. Lower lr, or train "
                "in float32 or bfloat16.",
                step,
            )
            raise raised_by_all(error)


@contextlib.contextmanager
def _of_another(what: str, then: str | None, now: object) -> Iterator[None]:
    """Turn what a foreign state raises inside the block into an error that names both sides."""
    try:
        yield
    except AstraError:
        raise
    except Exception as error:  # the state may come from another person
        if is_out_of_memory(error):
            raise
        of = "" if then is None else f" ({then})"
        raise TrainingError(
            f"the saved state is of another {what}{of} than that of {type(now).__name__}: "
            f"{type(error).__name__} {error}. Resume with the configuration that the run was "
            "started with, or start a new run."
        ) from error


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is no number of steps")
    return value


def mean_metrics(logs: Sequence[dict[str, Any]]) -> Metrics:
    """Return the mean of each metric over the mappings that contain it."""
    names = dict.fromkeys(name for log in logs for name in log)
    return {
        name: math.fsum(values) / len(values)
        for name in names
        if (values := [float(log[name]) for log in logs if name in log])
    }
