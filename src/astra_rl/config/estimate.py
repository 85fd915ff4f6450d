"""Size of a run and upper bound of its endpoint calls, before anything is sent or loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from astra_rl.agents.assignment import Assignment
from astra_rl.config.parts import EndpointUse, max_output_tokens
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import EVALUATED_TOGETHER
from astra_rl.core.contracts import mean_of_present
from astra_rl.core.text import Conversation
from astra_rl.rewards.base import RewardPart
from astra_rl.targets.budget import Budget

REPLAY_BATCH = 64
"""Number of given attacks that are sent and judged in one batch; see `estimate_given`."""
BRIEF_TOKENS = 200
"""Assumed number of tokens of the attacker's brief."""
JUDGE_PROMPT_TOKENS = 600
"""Assumed number of tokens of a judge's instructions, without the conversation."""


@dataclass(frozen=True)
class EstimateRow:
    """Upper bound of the calls of one endpoint.

    Attributes:
        name: Place of the endpoint in the configuration.
        requests: Number of calls, without retries.
        input: Prompt tokens, estimated as a quarter of the characters.
        output: Completion tokens if every reply has its maximum length.
        cost: In the currency of the prices; None without prices.
    """

    name: str
    requests: int
    input: int
    output: int
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """Upper bound of the calls of an evaluation, and what its budget is enough for.

    Attributes:
        rows: One per endpoint.
        conversations: Number of conversations.
        budget: Limits of the calls.
    """

    rows: Sequence[EstimateRow]
    conversations: int
    budget: Budget

    @property
    def ends(self) -> list[str]:
        """A sentence for each limit of the budget, see `describe_budget_of_evaluation`."""
        return describe_budget_of_evaluation(self.budget, self.rows, self.conversations)

    def __add__(self, other: Estimate) -> Estimate:
        """Return both together, within one budget."""
        rows, count = [*self.rows, *other.rows], self.conversations + other.conversations
        return Estimate(rows, count, self.budget)


@dataclass(frozen=True)
class TrainingSize:
    """How much a training plays and learns, at most.

    Attributes:
        episodes: Conversations, or trees of conversations; 0 if all attacks are given.
        attempts: Attacks.
        replies: Calls of the target, including those that a reward makes in addition; several per
            turn if it is an agent with tools; in self-play those of the defender.
        updates: Optimizer steps.
    """

    episodes: int
    attempts: int
    replies: int
    updates: int


def training_size(plan: Plan) -> TrainingSize:
    """Return the size of the training of a plan, from above.

    Conversations that end early, pairs that tie, episodes that need no replacement and a replay
    buffer that is not full make it less.
    """
    training = plan.training
    episodes = training.steps * training.episodes_per_step * plan.rounds
    levels = plan.siblings_by_level()
    attempts = episodes * sum(each.sets * each.size for each in levels if each.role == "attacker")
    exchanges = episodes * sum(plan.turns_by_level())
    replies = 1 + sum(part.replies_per_turn for part in plan.reward_parts())
    batches = math.ceil(_examples_per_step(plan) / training.batch_size) * plan.epochs
    updates = training.steps * math.ceil(batches / training.gradient_accumulation_steps)
    calls = exchanges * replies * _most_messages(plan)
    return TrainingSize(episodes, attempts, calls, updates)


def _examples_per_step(plan: Plan) -> int:
    """Return the most pairs, attacks or groups of attacks that a training step learns from."""
    if not plan.rounds:  # given attacks
        return plan.training.episodes_per_step
    options = plan.algorithm.settings()
    fresh = 1 - float(options.get("replay_share", 0.0))
    per_episode = 0.0
    for each in plan.siblings_by_level():
        if "max_group" in options:  # the attacks of a context, in parts
            per_set = float(math.ceil(each.size / fresh / int(options["max_group"])))
        elif "best" in options:
            per_set = min(int(options["best"]), each.size) / fresh
        elif "pairs" in options:
            is_all = options["pairs"] == "all"
            per_set = math.comb(each.size, 2) if is_all else min(1, each.size - 1)
        else:
            per_set = each.size / fresh
        per_episode += each.sets * per_set
    return math.ceil(plan.training.episodes_per_step * per_episode)


@dataclass(frozen=True)
class _Level:
    """Turns of one tree level that are played in one batch, and the number of such batches.

    Attributes:
        stage: ``"training"``, ``"watch"``, ``"evaluation"``, or ``"given"`` if the attacks are
            given, so that no reward is computed.
        before: Number of earlier turns of the conversation.
        opening: Mean number of tokens of an opening; together with the attacks if they are given.
        times: Number of batches.
        turns: Number of turns in a batch.
    """

    stage: str
    before: int
    opening: float
    times: int
    turns: int


def estimate(plan: Plan, *, training: bool = True, queries_per_turn: int = 1) -> list[EstimateRow]:
    """Return an upper bound of the calls of a run, or of an evaluation alone.

    Early ends of conversations, cached scores and shorter replies reduce the actual number.

    Args:
        plan: The run.
        training: Whether to include training.
        queries_per_turn: Target queries per turn of an evaluation.
    """
    return _rows(plan, list(_levels(plan, training, queries_per_turn)))


def total_of(rows: Sequence[EstimateRow], name: str = "total") -> EstimateRow:
    """Return the sum of several rows; its cost is that of the endpoints with prices, if any."""
    costs = [row.cost for row in rows if row.cost is not None]
    return EstimateRow(
        name,
        sum(row.requests for row in rows),
        sum(row.input for row in rows),
        sum(row.output for row in rows),
        sum(costs) if costs else None,
    )


def needed(rows: Sequence[EstimateRow]) -> dict[str, float]:
    """Return what calls need at most, by the name of the limit in a `Budget`."""
    total = total_of(rows)
    return {
        "max_requests": total.requests,
        "max_tokens": total.input + total.output,
        "max_cost": total.cost or 0.0,
    }


MOST_HELD = 0.5
"""Largest share of a budget that is kept for the final evaluation."""


def held_for_evaluation(plan: Plan) -> dict[str, float]:
    """Return what of each limit of the budget is kept for the evaluation after training.

    That is what the evaluation needs at most, but no more than `MOST_HELD` of the limit.
    """
    limits = {k: v for k, v in asdict(plan.budget).items() if v is not None}
    evaluation = needed(estimate(plan, training=False))
    held = {
        name: min(evaluation[name], MOST_HELD * most)
        for name, most in limits.items()
        if name in evaluation
    }
    return {k: v if k == "max_cost" else math.floor(v) for k, v in held.items()}


def describe_budget_of_run(plan: Plan) -> list[str]:
    """Return, for each limit of the budget, a sentence that says where a run reaches it."""
    whole, once = needed(estimate(plan)), needed(estimate(plan, training=False))
    held, steps = held_for_evaluation(plan), plan.training.steps
    found = []
    for name, kept in held.items():
        most = getattr(plan.budget, name)
        before = once[name] if plan.evaluation.before else 0.0
        per_step = (whole[name] - once[name] - before) / steps if steps else 0.0
        text = f"budget {name}={most:.12g} of at most {whole[name]:.12g} that the run needs: "
        if whole[name] <= most:
            text += "it suffices"
        elif before >= most - kept:
            text += "it ends in the evaluation before training"
        else:
            last = min(steps, int((most - kept - before) / per_step)) if per_step else steps
            text += (
                f"training ends after step {last} of {steps} or later; {kept:.6g} are kept for the "
                f"final evaluation, which needs at most {once[name]:.6g}"
            )
        found.append(text)
    return found


def describe_budget_of_evaluation(
    budget: Budget, rows: Sequence[EstimateRow], conversations: int
) -> list[str]:
    """Return, for each limit of a budget, how many conversations it is enough for at least."""
    all_of_them = needed(rows)
    found = []
    for name, most in asdict(budget).items():
        if most is None or name not in all_of_them:
            continue
        text = f"budget {name}={most:.12g} of at most {all_of_them[name]:.12g}: "
        if all_of_them[name] <= most:
            text += "it suffices"
        else:
            played = int(conversations * most / all_of_them[name])
            text += (
                f"it ends after {played} of {conversations} conversations or later, chosen at "
                "random by the seed"
            )
        found.append(text)
    return found


def estimate_given(
    plan: Plan, openings: Sequence[Conversation], attacks: Sequence[Sequence[str]]
) -> list[EstimateRow]:
    """Estimate the calls of sending given attacks to the target, as `estimate` does.

    Args:
        plan: The plan, with the endpoints that are called.
        openings: Opening context of each conversation.
        attacks: The attacks of each conversation, one per turn.
    """
    levels = []
    for before in range(max(map(len, attacks), default=0)):
        read = [
            Conversation("\n".join([opening, *sent[: before + 1]]), system=opening.system)
            for opening, sent in zip(openings, attacks, strict=True)
            if len(sent) > before
        ]
        batches, rest = divmod(len(read), REPLAY_BATCH)
        length = _mean_length(read)
        levels.append(_Level("given", before, length, batches, REPLAY_BATCH))
        levels.append(_Level("given", before, length, 1, rest))
    return _rows(plan, levels)


def _rows(plan: Plan, levels: Sequence[_Level]) -> list[EstimateRow]:
    if not plan.endpoints:
        return []
    parts = plan.reward_parts()
    return [_row(each, levels, parts, plan) for each in plan.endpoints]


def _row(
    endpoint: EndpointUse, levels: Sequence[_Level], parts: Sequence[RewardPart], plan: Plan
) -> EstimateRow:
    reply = _longest_reply(plan)
    requests = read = 0.0
    for level in levels:
        attack = 0 if level.stage == "given" else _longest_attack(plan)
        texts = _texts_per_turn(endpoint.owner, level.stage, parts, plan)
        requests += level.times * texts * math.ceil(level.turns / endpoint.texts_per_request)
        tokens = level.opening + level.before * (attack + reply) + attack
        if endpoint.owner == "attacker":
            tokens += BRIEF_TOKENS - attack
        if endpoint.is_judge and endpoint.reads_conversation:
            tokens += reply + JUDGE_PROMPT_TOKENS
        elif endpoint.is_judge:
            tokens = attack + reply
        read += level.times * texts * level.turns * tokens
    written = requests * endpoint.max_output
    cost = None if endpoint.prices is None else endpoint.prices.cost_of(read, written)
    return EstimateRow(endpoint.where, round(requests), round(read), round(written), cost)


def _texts_per_turn(owner: str, stage: str, parts: Sequence[RewardPart], plan: Plan) -> int:
    """Return the number of texts per turn that a target answers or a moderator scores."""
    has_judge = plan.judge is not None
    if owner == "evaluation.judge":
        return int(stage != "training")
    if stage == "given":
        if owner == "target":
            return _most_messages(plan)
        return int(owner == "moderator" and not has_judge)
    if stage == "watch":  # the score of the moderator is known from the reward
        return 0
    if owner == "attacker":
        return 1
    if owner == "target":
        asks = int(plan.environment.factory.calls_target)
        return _most_messages(plan) * (asks + sum(part.replies_per_turn for part in parts))
    if owner == "moderator":
        judged = sum(part.judged_per_turn for part in parts if part.moderator is None)
        # The score of each turn is recorded even if the reward does not use it.
        return max(judged, int(stage == "training" or not has_judge))
    own = [part for part in parts if plan.places.get(id(part.moderator)) == owner]
    answers = sum(plan.places.get(id(each)) == owner for part in parts for each in part.others)
    return sum(part.judged_per_turn for part in own) + answers * _most_messages(plan)


def _most_messages(plan: Plan) -> int:
    """Return the most messages of a target in a turn: several if it is an agent with tools."""
    assigned = map(Assignment.of, (*plan.openings.train, *plan.openings.test))
    return max((each.limits.replies for each in assigned if each is not None), default=1)


def _levels(plan: Plan, training: bool, queries_per_turn: int) -> Iterator[_Level]:
    """Yield all levels of training and evaluation."""
    openings, evaluation = plan.openings, plan.evaluation
    steps, episodes = plan.training.steps, plan.training.episodes_per_step
    if training:
        opening, counts = _mean_length(openings.train), plan.turns_by_level()
        for before, count in enumerate(counts):
            yield _Level("training", before, opening, steps * plan.rounds, episodes * count)
        if plan.judge is not None and plan.rounds:
            most = min(evaluation.watch, plan.rounds * episodes * sum(counts))
            yield _Level("watch", len(counts) - 1, opening, steps, most)
    evaluations = 1 + int(training and evaluation.before)
    batches, rest = divmod(plan.planned_conversations, EVALUATED_TOGETHER)
    opening = _mean_length(openings.test)
    straight = [queries_per_turn * count for count in plan.turns_by_level(straight=True)]
    for before, count in enumerate(straight):
        yield _Level(
            "evaluation", before, opening, evaluations * batches, EVALUATED_TOGETHER * count
        )
        yield _Level("evaluation", before, opening, evaluations, rest * count)


def _longest_attack(plan: Plan) -> int:
    """Return the maximum number of tokens of an attack; without an attacker openings have it."""
    if plan.attacker is not None:
        return max_output_tokens(plan.attacker)
    return 0 if plan.models.attacker is None else plan.models.attacker.max_new_tokens


def _longest_reply(plan: Plan) -> int:
    """Return the maximum number of tokens of a reply of the target."""
    if plan.target is not None:
        return max_output_tokens(plan.target)
    return 0 if plan.models.target is None else plan.models.target.max_new_tokens


def _mean_length(openings: Sequence[str]) -> float:
    """Return the mean number of tokens of openings: a quarter of their characters."""
    known = [Conversation.of(each) for each in openings]
    return mean_of_present((len(each.prompt) + len(each.system or "")) / 4 for each in known)
