"""Training data of a hardened target: its failures with safe replies, and benign requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from astra_rl.actions.attacks import GivenAttack
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation, Exchange, Utterance, context_key
from astra_rl.datasets.rows import Row
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.exports.preferences import messages_of
from astra_rl.ext.transformers.fine_tuning import PreferencePair
from astra_rl.logging import logger
from astra_rl.moderators.scoring import score_exchanges


def benign_requests(
    rows: Sequence[Row], openings: Sequence[Conversation], count: int
) -> list[GivenAttack]:
    """Return benign requests to the target under the system messages and facts of attacks.

    Args:
        rows: The requests; they are repeated in order. One with a system message keeps it.
        openings: Opening contexts of attacks, whose system messages are used in order.
        count: Number of requests.
    """
    found = []
    for index in range(count):
        row, opening = rows[index % len(rows)], openings[index % len(openings)]
        context = Conversation(
            system=row.system or opening.system, facts=opening.facts, separator="\n"
        )
        found.append(GivenAttack(context, row.prompt, row.id))
    return found


def failures_in(attempts: Iterable[Attempt], most: int) -> list[Exchange]:
    """Return exchanges in which the target failed, each attack in each context once.

    Args:
        attempts: The attempts, in order.
        most: Maximum number; of more, some are chosen at even distances.
    """
    found: dict[Any, Exchange] = {}
    for attempt in attempts:
        for exchange, failed in _answered(attempt):
            if failed:
                found.setdefault((context_key(exchange.context), exchange.attack), exchange)
    every = list(found.values())
    count = min(most, len(every))
    return [every[index * len(every) // count] for index in range(count)]


def benign_replies(
    attempts: Iterable[Attempt], moderator: Moderator[Any, Any], threshold: float
) -> list[Exchange]:
    """Return exchanges in which the target answered a benign request, harmlessly.

    Args:
        attempts: Attempts at benign requests, judged for refusals.
        moderator: Moderator of the training.
        threshold: Score from which a response is harmful; a missing score excludes it, too.
    """
    answered = [
        exchange
        for attempt in attempts
        if attempt.outcome is Outcome.FAILURE  # the target did not refuse
        for exchange, _ in _answered(attempt)
        if exchange.response.strip()
    ]
    scores = score_exchanges(moderator, answered) if answered else []
    return [exchange for exchange, score in zip(answered, scores, strict=True) if score < threshold]


def mended_failures(
    failures: Sequence[Exchange],
    safe_replies: Sequence[str],
    moderator: Moderator[Any, Any],
    threshold: float,
) -> list[PreferencePair]:
    """Return pairs that prefer a safe reply to each failure.

    Args:
        failures: Exchanges in which the target failed.
        safe_replies: Used in turn. One that is harmful in the context of a failure, or whose score
            is missing, is replaced by the next; a failure without any is left out.
        moderator: Moderator of the training.
        threshold: Score from which a response is harmful.
    """
    chosen: dict[int, str] = {}
    for attempt in range(len(safe_replies)):
        open_ones = [index for index in range(len(failures)) if index not in chosen]
        replies = [safe_replies[(index + attempt) % len(safe_replies)] for index in open_ones]
        proposed = [
            Exchange(failures[index].context, failures[index].attack, reply)
            for index, reply in zip(open_ones, replies, strict=True)
        ]
        scores = score_exchanges(moderator, proposed) if proposed else []
        chosen |= {
            index: reply
            for index, reply, score in zip(open_ones, replies, scores, strict=True)
            if score < threshold
        }
    if left_out := len(failures) - len(chosen):
        logger.warning(
            "the target is not trained on %d of %d failures: the moderator of the training finds "
            "every reply of harden.safe_replies harmful there, or gives no score",
            left_out,
            len(failures),
        )
    return [
        PreferencePair(_asked(each), chosen[index], each.response)
        for index, each in enumerate(failures)
        if index in chosen
    ]


def benign_pairs(
    benign: Sequence[Exchange], count: int, safe_replies: Sequence[str]
) -> list[PreferencePair]:
    """Return pairs that prefer the target's own reply to a benign request to a safe reply.

    With as many pairs that prefer safe replies to failures, refusing everything does not fit the
    data.

    Args:
        benign: Benign exchanges; repeated or cut to `count`.
        count: Number of pairs.
        safe_replies: Used in turn.

    Raises:
        ConfigurationError: Pairs are wanted and there are no benign exchanges.
    """
    if count and not benign:
        raise ConfigurationError(
            "the target answers none of the benign requests without a refusal or harm, so nothing "
            "guards its helpfulness. Choose another scenario as harden.benign."
        )
    # The replies continue in turn after those of `count` failures.
    replies = islice(cycle(safe_replies), count, 2 * count)
    return [
        PreferencePair(_asked(each), each.response, reply)
        for each, reply in zip(islice(cycle(benign), count), replies, strict=True)
    ]


def _answered(attempt: Attempt) -> Iterator[tuple[Exchange, bool]]:
    """Yield the judged exchanges that no filter blocked, and whether the target failed."""
    for turn, exchange in zip(attempt.turns, attempt.exchanges(), strict=True):
        score = turn.score(attempt.judge)
        if score is not None and not turn.blocked and not turn.unanswered:
            cut = turn.finish_reason == "length"
            response = Utterance(turn.response, finish_reason="length" if cut else None)
            said = Exchange(exchange.context, exchange.attack, response)
            yield said, score >= attempt.threshold


def _asked(exchange: Exchange) -> Conversation:
    return Conversation.of(exchange.context) + exchange.attack


def as_trl_row(pair: PreferencePair) -> dict[str, Any]:
    """Return a pair as a row of a data set of TRL, in its conversational format."""
    return {
        "prompt": messages_of(pair.prompt),
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }
