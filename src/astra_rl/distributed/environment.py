"""An environment whose episodes are played in parts, by all processes of a training."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import fresh_seed, repetitions
from astra_rl.distributed.broker import Broker
from astra_rl.distributed.parts import owner, spans
from astra_rl.distributed.ranks import Ranks, is_raised_by_all
from astra_rl.distributed.records import pack_graphs, pack_texts, unpack_graphs, unpack_texts


class DividedEnvironment(Environment[StateT, ActionT], Generic[StateT, ActionT]):
    """Plays the episodes of a call in parts; every process gets all of them.

    The parts depend on the number of episodes and on `parts` alone, and cached scores are dropped
    before each part, so that an episode does not depend on the number of processes, to the last
    bit.

    All processes call `rollouts` alike. `eval_rollouts` is called by process 0 alone, while the
    others are in `follow`.

    Args:
        environment: Plays the episodes of a part.
        ranks: The processes.
        parts: Number of parts.

    Attributes:
        digest: Checksum of the episodes of the latest call of `rollouts`.
    """

    def __init__(self, environment: Environment[StateT, ActionT], ranks: Ranks, parts: int) -> None:
        super().__init__(environment.problem)
        self.inner, self.ranks, self.parts = environment, ranks, parts
        self.queries_per_turn = environment.queries_per_turn
        self.tree_depth = environment.tree_depth
        self.digest = ""

    def rollout(self, seed: int | None = None) -> Graph[StateT, ActionT]:
        """Play one episode; it is one part."""
        return self.rollouts([seed])[0]

    def rollouts(self, seeds: Sequence[int | None]) -> list[Graph[StateT, ActionT]]:
        """Play one episode per seed."""
        known = self.ranks.share([fresh_seed() if seed is None else seed for seed in seeds])
        return self._play(known, lambda span: self.inner.rollouts([known[row] for row in span]))

    def eval_rollouts(
        self, seeds: Sequence[int | StateT | None], trials: Sequence[int] | None = None
    ) -> list[Graph[StateT, ActionT]]:
        """Play one evaluation episode per entry, with the processes that are in `follow`."""
        known = [fresh_seed() if seed is None else seed for seed in seeds]
        trials = repetitions(known) if trials is None else trials
        if self.ranks.size > 1:
            self.ranks.share({"seeds": pack_texts(known), "trials": list(trials)})  # type: ignore[arg-type]
        return self._play_evaluation(known, trials)

    def follow(self) -> None:
        """Play the parts of this process in each call of `eval_rollouts`, until `dismiss`.

        An exception that a call raises in all processes is for process 0 to handle.
        """
        while (job := self.ranks.share()) is not None:
            try:
                self._play_evaluation(unpack_texts(job["seeds"]), job["trials"])
            except Exception as error:
                if not is_raised_by_all(error):
                    raise

    def dismiss(self) -> None:
        """End `follow` in the other processes."""
        if self.ranks.size > 1:
            self.ranks.share(None)

    def choose_prompt(self, seed: int) -> StateT:
        """See `Environment.choose_prompt`."""
        return self.inner.choose_prompt(seed)

    def observe(self, graphs: Sequence[Graph[StateT, ActionT]]) -> None:
        """See `Environment.observe`; all processes observe all episodes."""
        self.inner.observe(graphs)

    def state_dict(self) -> dict[str, Any]:
        """See `Environment.state_dict`."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Environment.load_state_dict`."""
        self.inner.load_state_dict(state)

    def _play_evaluation(
        self, seeds: Sequence[Any], trials: Sequence[int]
    ) -> list[Graph[StateT, ActionT]]:
        return self._play(
            seeds,
            lambda span: self.inner.eval_rollouts(
                [seeds[row] for row in span], [trials[row] for row in span]
            ),
        )

    def _play(
        self, seeds: Sequence[Any], play: Callable[[range], Sequence[Graph[StateT, ActionT]]]
    ) -> list[Graph[StateT, ActionT]]:
        """Play the parts of this process; return the episodes of all."""
        parts = spans(len(seeds), self.parts)
        mine = [
            span
            for part, span in enumerate(parts)
            if owner(part, len(parts), self.ranks.size) == self.ranks.rank
        ]
        played: list[Graph[StateT, ActionT]] = []
        before = Counter(self._unscored())
        with self.ranks.together(), self._broker():
            for span in mine:
                self.problem.forget_scores()
                played += play(span)
            self.problem.forget_scores()
        if self.ranks.size == 1:
            return played
        return self._gathered(played, self._unscored() - before)

    def _gathered(
        self, played: Sequence[Graph[StateT, ActionT]], unscored: Counter[str]
    ) -> list[Graph[StateT, ActionT]]:
        with self.ranks.together():
            packed = json.dumps([pack_graphs(played), unscored]).encode()
        found = self.ranks.gather(packed)
        self.digest = hashlib.blake2b(b"\n".join(found), digest_size=16).hexdigest()
        graphs: list[Graph[StateT, ActionT]] = []
        for rank, each in enumerate(found):
            episodes, counts = json.loads(each)
            graphs += unpack_graphs(episodes)
            if rank != self.ranks.rank:
                self._unscored().update(counts)
        return graphs

    def _broker(self) -> AbstractContextManager[None]:
        return nullcontext() if self.ranks.size == 1 else Broker(self.ranks).answering()

    def _unscored(self) -> Counter[str]:
        """Return the moderator's count of missing scores by reason; one that counts none has none.

        The count of a `CachedModerator` is the object itself, so that it can be added to.
        """
        counts = getattr(self.problem.moderator, "unscored", None)
        return counts if isinstance(counts, Counter) else Counter()
