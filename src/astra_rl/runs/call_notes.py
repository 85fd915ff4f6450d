"""What a report says about the calls of an evaluation, and when they make it no result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from astra_rl.errors import EndpointError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import SILENT
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.ext.transformers.served_target import ServedTarget
from astra_rl.ext.transformers.target_adapters import NO_LOGPROBS_WARNING
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.targets.accounts import describe_spent
from astra_rl.targets.base import Target
from astra_rl.targets.ledger import current_ledger


def all_failed(attempts: Sequence[Attempt]) -> str:
    """Return why nothing is known if every conversation of an evaluation failed, else "".

    An evaluation of which nothing is known is no result, whatever an automation does with its
    numbers.
    """
    reasons = Counter(each.error for each in attempts if each.outcome is Outcome.ERROR)
    if not reasons or reasons.total() < len(attempts):
        return ""
    ((reason, _),) = reasons.most_common(1)
    return (
        f"all {reasons.total()} conversations failed, so nothing is known about the target: "
        f"{reason}."
    )


def all_calls_failed(attempts: Sequence[Attempt]) -> bool:
    """Whether every conversation failed, and not only because the attacks were empty.

    Then playing them again may help.
    """
    return bool(all_failed(attempts)) and any(each.error != SILENT for each in attempts)


def check_any_known(attempts: Mapping[str, Sequence[Attempt]]) -> None:
    """Raise if every conversation with a target failed; call it when the results are written.

    Args:
        attempts: Those of an evaluation, by the name of the target.

    Raises:
        EndpointError: They did; the message has the most frequent reason.
    """
    failed = {name: reason for name, each in attempts.items() if (reason := all_failed(each))}
    if failed:
        raise EndpointError(" ".join(f"{name}: {reason}" for name, reason in failed.items()))


def warnings_of_calls(result: EvaluationResult) -> Iterator[str]:
    """Yield warnings for the report about conversations of an evaluation that calls left out."""
    errors = [each for each in result.attempts if each.outcome is Outcome.ERROR]
    if errors:
        reasons = Counter(each.reasons[-1] for each in errors if each.reasons)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield (
            f"In {len(errors)} conversations a model call failed ({listed}). They are excluded "
            "from the rates; the bounds of the rate cover all their possible outcomes."
        )
    if result.summary.never_made:
        yield (
            f"A budget ended the evaluation: {len(result.attempts)} of {result.summary.planned} "
            "conversations were played, chosen at random. The outcomes of the others are unknown."
        )


def notes_on_calls(target: object) -> Iterator[str]:
    """Yield notes for the report about endpoint calls, with what was spent on them.

    Args:
        target: The target; one that is no `Target` is a local model.
    """
    ledger = current_ledger()
    if _is_black_box(target):
        yield f"The target is remote (black box): {target.name}; {NO_LOGPROBS_WARNING}."
    spent = describe_spent(ledger.as_dict())
    if spent:
        yield f"Spent on calls: {spent}."
    for ended in dict.fromkeys(ledger.ended_by):
        yield f"A session of this run was ended early: {ended}."


def _is_black_box(target: object) -> TypeGuard[Target]:
    return isinstance(target, Target) and not isinstance(target, ServedTarget)


def described_target(target: object) -> dict[str, Any]:
    """Return the entry of a remote target in the manifest; empty for a local model.

    One in an inference engine is local in this sense: its probabilities are known.
    """
    if not _is_black_box(target):
        return {}
    identity = target.identity
    return {"target": {"identity": identity, "likelihood": "baseline", "note": NO_LOGPROBS_WARNING}}
