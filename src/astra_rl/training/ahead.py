"""Episodes that are played while earlier ones are learned from, with older weights.

With ``max_staleness`` s, experience k (counted from 0) is sampled with the weights after
max(0, k - s) training steps, and with reward and environment as experiences up to k - s left them.
It is played while step k - s is learned from, by one thread, and it is complete when that step
ends. So the result depends on the seed, not on which of the two was faster.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from astra_rl.algorithms.mismatch import sampler_logprobs
from astra_rl.core.collector import Collected
from astra_rl.core.common import Metrics
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import fresh_seed, seeded
from astra_rl.core.turns import Turns, taking_turns, waiting
from astra_rl.distributed.records import pack_graphs, unpack_graphs
from astra_rl.errors import ConfigurationError, ContractError, TrainingError, first_line
from astra_rl.logging import logger
from astra_rl.training.harness import Harness


@dataclass(frozen=True)
class Play:
    """An experience to be played.

    Attributes:
        number: Training steps before the one that learns from it.
        version: Training steps after which its attacks are sampled.
        weights: The trained weights at that time; kept until it has been played, so that a play
            that fails can be repeated.
    """

    number: int
    version: int
    weights: Sequence[Tensor]


@dataclass(frozen=True)
class Played:
    """An experience that has been played, see `Play`."""

    version: int
    graphs: list[Graph[Any, Any]]


@dataclass
class _Flight:
    """A play in progress: its thread, the turns of the two threads, and what came of it."""

    play: Play
    turns: ExitStack
    thread: threading.Thread | None = None
    graphs: list[Graph[Any, Any]] = field(default_factory=list)
    error: BaseException | None = None


class PlayAhead:
    """Plays the experiences of a training, at most `staleness` steps before they are learned from.

    With a staleness of 0 an experience is played when it is asked for, in the same thread.

    Args:
        harness: Its algorithm and environment.
        staleness: Largest number of training steps by which weights are older that sample.
        seed_of: Returns the seed of an experience, by its number.
        completed_steps: Returns the number of completed training steps.
        training_steps: Returns their number at the end of the training.
    """

    def __init__(
        self,
        harness: Harness[Any, Any, Any, Any],
        staleness: int,
        *,
        seed_of: Callable[[int], int | None],
        completed_steps: Callable[[], int],
        training_steps: Callable[[], int],
    ) -> None:
        self.harness, self.staleness = harness, staleness
        self.seed_of = seed_of
        self.completed_steps, self.training_steps = completed_steps, training_steps
        self._played: dict[int, Played] = {}
        self._failed: Play | None = None
        self._error: BaseException | None = None
        self._flight: _Flight | None = None
        if staleness:
            harness.collect, harness.on_observed = self.collect, self.start_next

    def collect(self, seed: int | None) -> Collected:
        """Return the next experience; those that must be played before it is learned from are.

        Args:
            seed: Its seed, which `seed_of` gives, too.

        Raises:
            Exception: What the play of an experience raised.
        """
        self.settle()  # an interrupt may have left a play in progress
        number = self.completed_steps()
        last = min(number + self.staleness, self.training_steps())
        for each in range(number, max(last, number + 1)):
            if each not in self._played:
                self._raise()
                self._start(each)
                self.settle()
                self._raise()
        graphs = self._played[number].graphs
        self._check_sampled(number)
        return Collected(graphs, self.harness.algorithm.collector.select(graphs))

    def start_next(self) -> None:
        """Start to play the experience that is `staleness` steps ahead."""
        number = self.completed_steps() + self.staleness
        if number < self.training_steps() and number not in self._played:
            self._start(number)

    def settle(self) -> None:
        """Wait until the play in progress has ended; its error is raised by the next `collect`."""
        flight = self._flight
        if flight is None:
            return
        assert flight.thread is not None
        with waiting():
            flight.thread.join()
        flight.turns.close()
        self._flight = None
        if flight.error is None:
            self._played[flight.play.number] = Played(flight.play.version, flight.graphs)
            self._failed = None
        else:
            self._failed, self._error = flight.play, flight.error

    def metrics(self) -> Metrics:
        """Return the age of the weights that sampled the experience of this step, in steps."""
        number = self.completed_steps()
        found = self._played.get(number)
        return {} if found is None else {"sampling/staleness": float(number - found.version)}

    def drop_learned(self) -> None:
        """Forget the experiences that have been learned from."""
        done = self.completed_steps()
        self._played = {number: each for number, each in self._played.items() if number >= done}

    def warn_of_failure(self) -> None:
        """Log the error of a play that nothing has raised because the training stopped."""
        if self._error is not None:
            logger.warning(
                "the episodes of training step %d could not be played (%s: %s); they are played "
                "again when the training is resumed",
                0 if self._failed is None else self._failed.number + 1,
                type(self._error).__name__,
                first_line(self._error),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the experiences in flight, and the weights of one whose play failed.

        Raises:
            ContractError: The episodes have classes of the user's own.
        """
        self.settle()
        failed = self._failed
        return {
            "played": [
                {"number": number, "version": each.version, **pack_graphs(each.graphs)}
                for number, each in sorted(self._played.items())
                if number >= self.completed_steps()
            ],
            "failed": None
            if failed is None
            else {
                "number": failed.number,
                "version": failed.version,
                "weights": list(failed.weights),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            TrainingError: More experiences are in flight than this training allows.
        """
        self.settle()  # an interrupt may have left a play in progress, which is not of this state
        played, failed = state.get("played", ()), state.get("failed")
        flying = [*played, *([] if failed is None else [failed])]
        if len(flying) > self.staleness:
            raise TrainingError(
                f"the saved state has {len(flying)} experiences that were played ahead, and "
                f"max_staleness is {self.staleness}. Resume with max_staleness={len(flying)} or "
                "more."
            )
        self._played = {
            int(each["number"]): Played(int(each["version"]), unpack_graphs(each))
            for each in played
        }
        self._error = None
        self._failed = (
            None
            if failed is None
            else Play(int(failed["number"]), int(failed["version"]), failed["weights"])
        )

    def _start(self, number: int) -> None:
        """Start a thread that plays an experience; this thread keeps its turn."""
        play = self._failed
        if play is None or play.number != number:
            weights = [each.detach().clone() for each in self._trained()]
            play = Play(number, self.completed_steps(), weights)
            frozen = self.harness.environment.problem.frozen_attacker()
        else:
            frozen = self._frozen_with(play.weights)
        seed = self.seed_of(number)
        seed = fresh_seed() if seed is None else seed  # drawn here: its order is that of the steps
        turns = Turns()
        flight = _Flight(play, ExitStack())
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        with ExitStack() as entered:
            entered.enter_context(taking_turns(turns))
            context = contextvars.copy_context()
            flight.thread = threading.Thread(
                target=lambda: context.run(self._play, flight, turns, frozen, seed, device),
                name=f"play-{number}",
                daemon=True,  # a second interrupt must not wait for it
            )
            flight.thread.start()
            flight.turns = entered.pop_all()
        self._flight = flight

    def _play(
        self,
        flight: _Flight,
        turns: Turns,
        frozen: Callable[[], AbstractContextManager[None]],
        seed: int,
        device: int | None,
    ) -> None:
        harness, environment = self.harness, self.harness.environment
        try:
            with taking_turns(turns):
                if device is not None:
                    torch.cuda.set_device(device)  # each thread has its own
                # Scores that a resumed training would compute anew: their last digits may depend
                # on the batch that they are computed in.
                environment.problem.forget_scores()
                with frozen(), seeded(seed):
                    flight.graphs = harness.algorithm.collector.collect(
                        environment, seed, harness.num_episodes_per_experience
                    ).played
                pack_graphs(flight.graphs)  # raises now, and not when a state is saved
        except BaseException as error:
            flight.error = error

    @torch.no_grad()
    def _frozen_with(self, weights: Sequence[Tensor]) -> Callable[[], AbstractContextManager[None]]:
        """Return what `Problem.frozen_attacker` returns for earlier weights."""
        trained = self._trained()
        present = [each.detach().clone() for each in trained]
        try:
            for parameter, earlier in zip(trained, weights, strict=True):
                parameter.copy_(earlier)
            return self.harness.environment.problem.frozen_attacker()
        finally:
            for parameter, newer in zip(trained, present, strict=True):
                parameter.copy_(newer)

    def _trained(self) -> list[Tensor]:
        problem = self.harness.algorithm.problem
        return [each for each in problem.parameters() if each.requires_grad]

    def _raise(self) -> None:
        """Raise the error of the latest play, once; it is played again after that."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _check_sampled(self, number: int) -> None:
        """Raise if the loss could not be corrected for the age of the weights that sampled."""
        played = self._played[number]
        if played.version == number or not self.harness.algorithm.needs_exact_sampling:
            return
        for graph in played.graphs:
            for node in graph.nodes():
                if str(node.attack) and sampler_logprobs(node.attack) is None:
                    raise ContractError(
                        f"max_staleness={self.staleness}, and an attack has no log-probabilities "
                        "of the weights that sampled it, so the loss cannot be corrected for their "
                        "age. Use a sampler that returns them, or max_staleness=0."
                    )


def check_staleness(staleness: int, *, processes: int, shards: int | None) -> None:
    """Raise if a training cannot play ahead in the way that it is divided.

    Raises:
        ConfigurationError: It cannot.
    """
    if staleness and (processes > 1 or (shards or 1) > 1):
        raise ConfigurationError(
            f"max_staleness={staleness} with {processes} processes and shards={shards}; episodes "
            "are played ahead in one process and one shard. Start one process without shards, or "
            "use max_staleness=0."
        )
