"""What a reward is made of.

A *term* looks at the turns of one tree level, all episodes together, and gives one number per turn.
A *reward* combines parts, terms or other rewards, to one number per turn and keeps each part by
name for the record. Adding a term is a function, or a class with a name and one method.

Parts do not change while they measure: what a part remembers (a history, a moving average) it
learns in `observe`, from the episodes of a training experience that is over. So a reward does not
depend on which episodes share a batch, and evaluating an attacker leaves no trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.graph import Graph
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import FrozenModel
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError

State = dict[str, Any]
"""What a part remembers, by name, in JSON's own types."""

RESPONSE_HARM = "harm_response"
"""Under this name the record of a turn has the moderator's plain score of the response."""

Values = tuple[list[float], list[dict[str, float]]]
"""One number per turn, and for each turn its parts by name."""


TargetReading = Literal["likelihood", "inside"]
"""What only some targets can be asked for: how likely they find an attack, which the baseline can
stand in for, or what is inside of them, which nothing can."""


class RewardModels(Protocol):
    """What a term may ask of the problem it serves."""

    moderator: Moderator[Any, Any]

    def rollout_prompt_with_target(self, contexts: Sequence[Any]) -> Sequence[Any]:
        """Sample a response per context that ends in an attack."""

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
        name: How its value is called in logs and records. A term has one; the value of a reward
            is recorded only if it is given one.
        moderator: The moderator that scores for it; None is the problem's moderator.
        others: Further targets that it queries.
    """

    name: str | None = None
    moderator: Moderator[Any, Any] | None = None
    others: Sequence[Any] = ()

    @property
    def reads_target(self) -> TargetReading | None:
        """What it asks the target for besides its answers, itself and without its parts."""
        return None

    @property
    def judged_per_turn(self) -> int:
        """How many texts it has judged per turn at most, itself and without its parts."""
        return 0

    @property
    def records_response_harm(self) -> bool:
        """Whether it records the moderator's plain score of the response, as `RESPONSE_HARM`."""
        return False

    @property
    def replies_per_turn(self) -> int:
        """How many more replies per turn it asks the target for, itself and without its parts."""
        return 0

    @abstractmethod
    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the value of each turn, and what was measured on the way, by name."""

    @property
    def parts(self) -> Sequence[RewardPart]:
        """What it is made of; nothing for a term."""
        return ()

    def observe(  # noqa: B027
        self, models: RewardModels, graphs: Sequence[Graph[str, str]]
    ) -> None:
        """Learn from the episodes of a training experience. Called once after each."""

    def state_dict(self) -> State:
        """Return what it remembers itself, without its parts, in JSON's own types."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027
        """Take back what `state_dict` returned."""


class RewardTerm(RewardPart):
    """One part of a reward that is measured.

    Attributes:
        name: How it is called in logs and records.
    """

    name: str

    @abstractmethod
    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return one number per turn; NaN where it could not be computed."""

    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the value of each turn, and the same by name."""
        # A Score that is missing says why, which float() would make it forget.
        values = [
            value if isinstance(value, float) else float(value) for value in self(models, exchanges)
        ]
        check_length(values, len(exchanges), source=f"reward term {self.name!r}")
        return values, [{self.name: value} for value in values]


class Reward(RewardPart):
    """A rule that turns parts into one number per turn."""

    @abstractmethod
    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's reward and its parts by name."""

    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's reward and its parts by name, its own among them if it has one."""
        values, rows = self(models, exchanges)
        check_length(values, len(exchanges), source=type(self).__name__)
        if self.name is not None:
            rows = [{**row, self.name: value} for row, value in zip(rows, values, strict=True)]
        return values, rows


class FunctionTerm(RewardTerm):
    """Makes a reward term of a function.

    Args:
        function: Takes the turns of a level and returns a number for each.
        name: How it is called in logs and records; None takes the function's name.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Exchange]], Sequence[float]],
        name: str | None = None,
    ) -> None:
        self.function = function
        self.name = function.__name__ if name is None else name

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return what the function says."""
        return self.function(exchanges)


class WeightedSum(Reward):
    """The sum of parts, each times its weight. A missing part makes the reward missing.

    Args:
        weights: Parts and their weights. A part of weight 0 is measured and recorded only.

    Raises:
        ConfigurationError: Two terms have the same name.
    """

    def __init__(self, weights: Mapping[RewardPart, float]) -> None:
        self.weights = dict(weights)
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """What is added up."""
        return list(self.weights)

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's weighted sum and all parts."""
        columns, rows = evaluate_parts(self.parts, models, exchanges)
        # Left out rather than multiplied by zero: zero times NaN is NaN, and a part that is only
        # watched must not cost a turn its reward.
        weighted = zip(columns, self.weights.values(), strict=True)
        active = [(column, weight) for column, weight in weighted if weight != 0]
        return [
            sum(weight * column[row] for column, weight in active) for row in range(len(rows))
        ], rows


def evaluate_parts(
    parts: Sequence[RewardPart], models: RewardModels, exchanges: Sequence[Exchange]
) -> tuple[list[list[float]], list[dict[str, float]]]:
    """Evaluate several parts; returns one list of values per part, and one record per turn."""
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
    """Evaluate several terms; returns one mapping of name to value per turn."""
    return evaluate_parts(terms, models, exchanges)[1]


def walk(part: RewardPart) -> Iterator[RewardPart]:
    """Yield a part and all it is made of, each object once, what it is made of after it."""
    seen: set[int] = set()
    stack = [part]
    while stack:
        each = stack.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            stack.extend(reversed(each.parts))


def readings(part: RewardPart) -> set[TargetReading]:
    """Return what a reward asks the target for besides its answers."""
    return {each.reads_target for each in walk(part) if each.reads_target is not None}


def check_names(part: RewardPart) -> None:
    """Raise if two different parts would be recorded under one name.

    Raises:
        ConfigurationError: Naming it.
    """
    names: set[str] = set()
    for each in walk(part):
        if each.name is not None and each.name in names:
            raise ConfigurationError(
                f"two reward terms are called {each.name!r}; give each term once, or give one of "
                "them another name."
            )
        names.update([each.name] if each.name is not None else [])


def observed_values(graphs: Sequence[Graph[str, str]], name: str) -> list[float]:
    """Return the values recorded under a name in an experience, without the missing ones."""
    return [
        node.reward_terms[name]
        for graph in graphs
        for node in graph.nodes()
        if not is_missing(node.reward_terms.get(name, float("nan")))
    ]


def observed_attacks(graphs: Sequence[Graph[str, str]], name: str) -> list[str]:
    """Return the attacks of an experience that were measured under a name."""
    return [
        str(node.attack) for graph in graphs for node in graph.nodes() if name in node.reward_terms
    ]


def observe(reward: RewardPart, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
    """Let every part of a reward learn from a training experience that is over."""
    for part in walk(reward):
        part.observe(models, graphs)


def state_dict(reward: RewardPart) -> State:
    """Return what all parts of a reward remember, by place and name; parts without memory lack."""
    return {key: state for key, part in _by_place(reward) if (state := part.state_dict())}


def load_state_dict(reward: RewardPart, state: State) -> None:
    """Give the parts of a reward back what they remembered.

    Raises:
        ConfigurationError: The state is of a reward that is made of other parts.
    """
    parts = dict(_by_place(reward))
    strange = sorted(set(state) - set(parts))
    if strange:
        raise ConfigurationError(
            f"the saved reward remembers {strange}, which this one does not have. Resume with the "
            "reward that the run was started with."
        )
    for key, remembered in state.items():
        parts[key].load_state_dict(remembered)


def _by_place(reward: RewardPart) -> Iterator[tuple[str, RewardPart]]:
    for index, part in enumerate(walk(reward)):
        yield f"{index}.{part.name or type(part).__name__}", part
