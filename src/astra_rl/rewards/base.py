"""Interfaces of rewards and their terms.

A *term* computes one number per turn, for all turns of one tree level of all episodes. A *reward*
combines parts (terms or other rewards) into one number per turn, and records each part by name. A
new term is a function, or a class with a name and one method.

The state of a part (a history, a running mean) is updated in `observe` only, after each training
experience. So a reward does not depend on which episodes share a batch, and evaluation does not
change it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.graph import Graph
from astra_rl.core.moderator import Moderator, missing_score
from astra_rl.core.problem import FrozenModel
from astra_rl.core.text import Exchange, NoAttack, NotAsked
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named

State = dict[str, Any]
"""State of a part, by name, as JSON values."""

RESPONSE_HARM = "harm_response"
"""Name of the record of the problem's moderator's score of a response, without any scaling."""

Values = tuple[list[float], list[dict[str, float]]]
"""One value per turn, and for each turn the values of its parts by name."""


TargetReading = Literal["likelihood", "inside"]
"""What a term needs of the target besides its responses. ``"likelihood"``: log-probabilities of
attacks, which the baseline can replace for a black-box target. ``"inside"``: hidden states or
log-probabilities of responses, which need a local target."""


class RewardModels(Protocol):
    """The part of a `Problem` that reward terms use."""

    moderator: Moderator[Any, Any]

    def rollout_prompt_with_target(self, contexts: Sequence[Any]) -> Sequence[Any]:
        """Sample one response per context that ends in an attack."""

    def get_attacker_logprobs(
        self, contexts: Sequence[Any], continuations: Sequence[Any]
    ) -> Tensor:
        """Score attacks under the attacker, shape (B, T)."""

    def get_target_logprobs(self, contexts: Sequence[Any], continuations: Sequence[Any]) -> Tensor:
        """Score attacks under the target, shape (B, T)."""

    def get_baseline_logprobs(
        self, contexts: Sequence[Any], continuations: Sequence[Any]
    ) -> Tensor:
        """Score attacks under the frozen reference, shape (B, T)."""

    @property
    def samples_exactly(self) -> bool:
        """Whether attacks are sampled from the distribution that `get_attacker_logprobs` scores."""

    def get_response_logprobs(self, contexts: Sequence[Any], responses: Sequence[Any]) -> Tensor:
        """Score responses under the target, shape (B, T)."""

    def embed(self, texts: Sequence[str], under: FrozenModel) -> Tensor:
        """Return embeddings of texts under a frozen model, shape (N, D)."""


class RewardPart(ABC):
    """A term, or a reward made of parts.

    Attributes:
        name: Name of its value in logs and records. A term has one; the value of a reward is
            recorded only if it has one.
        moderator: Its moderator; None is the problem's moderator.
        others: Further targets that it queries.
    """

    name: str | None = None
    moderator: Moderator[Any, Any] | None = None
    others: Sequence[Any] = ()

    @property
    def reads_target(self) -> TargetReading | None:
        """What it needs of the target besides responses, without its parts."""
        return None

    @property
    def reads_model(self) -> bool:
        """Whether it needs probabilities or hidden states of any model, without its parts."""
        return self.reads_target is not None

    @property
    def judged_per_turn(self) -> int:
        """Most texts per turn that it has the moderator score, without its parts."""
        return 0

    @property
    def records_response_harm(self) -> bool:
        """Whether it records `RESPONSE_HARM`."""
        return False

    @property
    def replies_per_turn(self) -> int:
        """Additional responses per turn that it samples from the target, without its parts."""
        return 0

    @abstractmethod
    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the value of each turn, and the values of its parts by name."""

    @property
    def parts(self) -> Sequence[RewardPart]:
        """Its direct parts; none for a term."""
        return ()

    def observe(  # noqa: B027
        self, models: RewardModels, graphs: Sequence[Graph[str, str]]
    ) -> None:
        """Update the state from a training experience; called once after each."""

    def state_dict(self) -> State:
        """Return its state without that of its parts, as JSON values."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027
        """Restore the state that `state_dict` returned."""


class RewardTerm(RewardPart):
    """A part of a reward that is computed from the turns.

    Attributes:
        name: Name in logs and records.
        rewards_output: Whether it is computed from the output of the attacker, so that it also has
            a value if that has no attack. Other terms are missing for such turns, which come in
            calls of their own.
    """

    name: str
    rewards_output: bool = False

    @abstractmethod
    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return one number per turn; NaN is missing."""

    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the value of each turn, and the same by name."""
        if not self.rewards_output and (missing := without_attack(exchanges)):
            return missing, [{self.name: value} for value in missing]
        # float() would drop the reason of a missing Score.
        values = [
            value if isinstance(value, float) else float(value) for value in self(models, exchanges)
        ]
        check_length(values, len(exchanges), source=f"reward term {self.name!r}")
        return values, [{self.name: value} for value in values]


class Reward(RewardPart):
    """Combines parts into one number per turn."""

    @abstractmethod
    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the reward of each turn, and its parts by name."""

    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the reward of each turn, and its parts and its own value by name."""
        values, rows = self(models, exchanges)
        check_length(values, len(exchanges), source=type(self).__name__)
        if self.name is not None:
            rows = [{**row, self.name: value} for row, value in zip(rows, values, strict=True)]
        return values, rows


class FunctionTerm(RewardTerm):
    """A function as a reward term.

    Args:
        function: Takes the turns of a tree level and returns one number per turn.
        name: Name in logs and records; None is the name of the function.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Exchange]], Sequence[float]],
        name: str | None = None,
    ) -> None:
        self.function = function
        self.name = function.__name__ if name is None else name

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the values of the function."""
        return self.function(exchanges)


@named("sum")
class WeightedSum(Reward):
    """Weighted sum of parts. A missing part with a non-zero weight makes the reward missing.

    Args:
        weights: Parts and their weights, at least one. A part of weight 0 is only recorded.

    Raises:
        ConfigurationError: There are no parts, or two terms have the same name.
    """

    def __init__(self, weights: Mapping[RewardPart, float]) -> None:
        if not weights:
            raise ConfigurationError("the sum is empty; give at least one part.")
        self.weights = dict(weights)
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The summands."""
        return list(self.weights)

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the weighted sum of each turn, and all parts by name."""
        columns, rows = evaluate_parts(self.parts, models, exchanges)
        # Left out rather than multiplied by zero: zero times NaN is NaN, and a part that is only
        # recorded must not make the reward missing.
        weighted = zip(columns, self.weights.values(), strict=True)
        active = [(column, weight) for column, weight in weighted if weight != 0]
        return [
            sum(weight * column[row] for column, weight in active) for row in range(len(rows))
        ], rows


def without_attack(exchanges: Sequence[Exchange]) -> list[float]:
    """Return one missing score per turn if the outputs of these turns have no attack, else none."""
    if any(not isinstance(each.response, NotAsked) for each in exchanges):
        return []
    return [missing_score(each.response, "no attack") for each in exchanges]


def evaluate_parts(
    parts: Sequence[RewardPart], models: RewardModels, exchanges: Sequence[Exchange]
) -> tuple[list[list[float]], list[dict[str, float]]]:
    """Evaluate several parts; return one list of values per part, and one record per turn."""
    columns: list[list[float]] = []
    rows: list[dict[str, float]] = [{} for _ in exchanges]
    for part in parts:
        values, measured = part.evaluate(models, exchanges)
        columns.append(values)
        for row, more in zip(rows, measured, strict=True):
            row.update(more)
    return columns, rows


def measure(
    terms: Sequence[RewardTerm], models: RewardModels, exchanges: Sequence[Exchange]
) -> list[dict[str, float]]:
    """Evaluate several terms; return one mapping of names to values per turn."""
    return evaluate_parts(terms, models, exchanges)[1]


def walk(part: RewardPart) -> Iterator[RewardPart]:
    """Yield a part and all its direct and indirect parts, each object once, in pre-order."""
    seen: set[int] = set()
    stack = [part]
    while stack:
        each = stack.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            stack.extend(reversed(each.parts))


def readings(part: RewardPart) -> set[TargetReading]:
    """Return what a reward and its parts need of the target besides responses."""
    return {each.reads_target for each in walk(part) if each.reads_target is not None}


def check_names(part: RewardPart) -> None:
    """Raise if two different parts have the same name in the record.

    Raises:
        ConfigurationError: They have; the name is given.
    """
    names: set[str] = set()
    for each in walk(part):
        if each.name is not None and each.name in names:
            raise ConfigurationError(
                f"two reward terms have the name {each.name!r}; use the term once, or give one of "
                "them another name."
            )
        names.update([each.name] if each.name is not None else [])


def observed_values(graphs: Sequence[Graph[str, str]], name: str) -> list[float]:
    """Return the values of a name in the records of an experience, without missing ones."""
    return [
        node.reward_terms[name]
        for graph in graphs
        for node in graph.nodes()
        if not is_missing(node.reward_terms.get(name, float("nan")))
    ]


def observed_attacks(graphs: Sequence[Graph[str, str]], name: str) -> list[str]:
    """Return the attacks of an experience whose records have this name."""
    return [
        str(node.attack)
        for graph in graphs
        for node in graph.nodes()
        if name in node.reward_terms and not isinstance(node.attack, NoAttack)
    ]


def observe(reward: RewardPart, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
    """Call `RewardPart.observe` of every part of a reward."""
    for part in walk(reward):
        part.observe(models, graphs)


def state_dict(reward: RewardPart) -> State:
    """Return the states of all parts of a reward that have one, by position and name."""
    return {key: state for key, part in _by_position(reward) if (state := part.state_dict())}


def load_state_dict(reward: RewardPart, state: State) -> None:
    """Restore the states of the parts of a reward.

    Raises:
        ConfigurationError: The state is of a reward with other parts.
    """
    parts = dict(_by_position(reward))
    unknown = sorted(set(state) - set(parts))
    if unknown:
        raise ConfigurationError(
            f"the saved reward has states of {unknown}, which this reward does not have. Resume "
            "with the reward that the run was started with."
        )
    for key, saved in state.items():
        parts[key].load_state_dict(saved)


def _by_position(reward: RewardPart) -> Iterator[tuple[str, RewardPart]]:
    for index, part in enumerate(walk(reward)):
        yield f"{index}.{part.name or type(part).__name__}", part


def check_stateless(name: str, part: RewardPart | None) -> None:
    """Raise if a part outside the problem's reward has state, which no checkpoint would save.

    Raises:
        ConfigurationError: It has; `name` is that of the option.
    """
    if part is not None and (remembered := state_dict(part)):
        raise ConfigurationError(
            f"{name} has state {sorted(remembered)}, and only the problem's reward may have "
            "state. Use a part that compares with siblings, or put this part there."
        )
