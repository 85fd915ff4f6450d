"""Convert episode graphs to attempt records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from astra_rl.core.contracts import check_length, checked_logprobs, token_mask
from astra_rl.core.graph import Graph, Node
from astra_rl.core.text import NoReply, NotAsked, NotSent, Utterance
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Opening, Turn

if TYPE_CHECKING:  # records are read without it
    from torch import Tensor

LogProbs: TypeAlias = "Callable[[Sequence[Any], Sequence[Any]], Tensor]"
"""Scores attacks in their contexts, shape (B, T); see `Problem.get_baseline_logprobs`."""
SILENT = "the attack is empty: the target was asked nothing"
"""Error of an attempt whose messages to the target are blank; its reply says nothing about it."""


@dataclass(frozen=True)
class Labels:
    """Fields that all attempts of an evaluation have in common.

    Attributes:
        run: Name of the run, the same for the same configuration.
        phase: Phase of the run.
        attacker: Name of the attacker.
        target: Name of the target.
        judge_id: Identifies the judge's weights and settings.
        queries_per_turn: See `Attempt`.
        categories: Harm category or scenario of each opening, by `Opening.id`.
    """

    run: str = ""
    phase: str = "evaluation"
    attacker: str = "attacker"
    target: str = "target"
    judge_id: str = ""
    queries_per_turn: int = 1
    categories: Mapping[str, str] = field(default_factory=dict)


def record_path(
    nodes: Sequence[Node[str, str]],
    opening: Opening | str,
    labels: Labels,
    *,
    judge: str,
    scores: Sequence[float],
    threshold: float,
    logprobs: Sequence[Mapping[str, LogProb]] | None = None,
    refusals: Sequence[float] | None = None,
    **details: Any,
) -> Attempt:
    """Record one path through a tree of conversations.

    Args:
        nodes: The turns in order.
        opening: The context before the first turn.
        labels: Common fields.
        judge: Name of the judge.
        scores: Score of each turn; NaN where it is missing.
        threshold: Score from which a turn counts as a failure of the target.
        logprobs: Log-probabilities of each attack by model, in addition to those of sampling.
        refusals: Probability that each response is a refusal; None if it was not computed.
        details: Further fields of `Attempt.make`.
    """
    check_length(scores, len(nodes), source=judge)
    turns = [
        _turn(
            node,
            {judge: JudgeScore.of(score)},
            logprobs[at] if logprobs is not None else {},
            None if refusals is None else bool(refusals[at] >= 0.5),
        )
        for at, (node, score) in enumerate(zip(nodes, scores, strict=True))
    ]
    errors = (
        node.response.error
        for node in nodes
        if isinstance(node.response, NoReply) and not isinstance(node.response, NotAsked)
    )
    known = opening if isinstance(opening, Opening) else Opening.of(opening)
    sent = [node.attack for node in nodes if not isinstance(node.response, NotAsked)]
    is_agent = any(turn.trace is not None for turn in turns)  # its user asked it something
    silent = SILENT if sent and known.is_silent(sent) and not is_agent else ""
    prompt = details.get("prompt_id") or known.id
    details.setdefault("category", labels.categories.get(prompt, ""))
    return Attempt.make(
        run=labels.run,
        phase=labels.phase,
        opening=known,
        target=labels.target,
        attacker=labels.attacker,
        turns=turns,
        judge=judge,
        judge_id=labels.judge_id,
        queries_per_turn=labels.queries_per_turn,
        threshold=threshold,
        error=next((str(error) for error in errors if error), silent),
        **details,
    )


def record_tree(
    graph: Graph[str, str],
    labels: Labels,
    *,
    judge: str,
    score: Callable[[Node[str, str]], float],
    threshold: float,
    **details: Any,
) -> Iterator[Attempt]:
    """Record every conversation of a tree, from the opening to a leaf.

    The turns of a defender are no attacks; in self-play a conversation ends before them.

    Args:
        graph: The episode.
        labels: Common fields.
        judge: Name of the judge.
        score: Returns the score of a turn; NaN if it is missing.
        threshold: Score from which a turn counts as a failure of the target.
        details: Further fields of `Attempt.make`.
    """
    opening = Opening.of(graph.context)
    waiting: list[tuple[list[Node[str, str]], tuple[int, ...]]] = []
    for index in reversed(range(len(graph.children))):
        waiting.append(([graph.children[index]], (index,)))
    while waiting:
        path, branch = waiting.pop()
        children = [child for child in path[-1].children if child.role == "attacker"]
        for index in reversed(range(len(children))):
            waiting.append(([*path, children[index]], (*branch, index)))
        if not children:
            yield record_path(
                path,
                opening,
                labels,
                judge=judge,
                scores=[score(node) for node in path],
                threshold=threshold,
                branch=branch,
                **details,
            )


def _turn(
    node: Node[str, str],
    scores: Mapping[str, JudgeScore],
    logprobs: Mapping[str, LogProb],
    refused: bool | None,
) -> Turn:
    attack, response = Utterance.of(node.attack), Utterance.of(node.response)
    known = {"attacker": _sum(attack.logprobs), "target": _sum(response.heard_logprobs)}
    return Turn(
        attack=node.attack,
        response=node.response,
        written=attack.written,
        scores=dict(scores),
        reward=node.reward,
        reward_terms=dict(node.reward_terms),
        logprobs={name: value for name, value in known.items() if value} | dict(logprobs),
        attack_tokens=_count(attack),
        response_tokens=_count(response),
        finish_reason=response.finish_reason,
        refused=refused,
        asked=response.asked,
        reasoning=response.reasoning,
        attack_reasoning=attack.reasoning,
        trace=TraceRecord.of(node.response),
        unknown_alternatives=node.unknown_alternatives,
        not_sent=isinstance(response, NotSent),
    )


def _sum(logprobs: Sequence[float] | None) -> LogProb | None:
    return LogProb.of(sum(logprobs), len(logprobs)) if logprobs else None


def _count(text: Utterance) -> int | None:
    return None if text.token_ids is None else len(text.token_ids)


def measure_logprobs(
    models: Mapping[str, LogProbs], nodes: Sequence[Node[str, str]]
) -> list[dict[str, LogProb]]:
    """Compute the log-probabilities of attacks under several models.

    Args:
        models: Log-probability function of each model, by role or name.
        nodes: The turns; each model is called once for all of them.

    Returns:
        For each turn the log-probability by model. An attack without tokens has none, nor one
        whose log-probability is not finite.
    """
    rows: list[dict[str, LogProb]] = [{} for _ in nodes]
    if not nodes:
        return rows
    attacks = [node.attack for node in nodes]
    for name, score in models.items():
        found = checked_logprobs(score, [node.context for node in nodes], attacks, grad=False)
        # As plain text: the token ids of an attack are those of the attacker's tokenizer.
        mask = token_mask(found, [str(attack) for attack in attacks])
        totals, counts = (found * mask).sum(dim=1).tolist(), mask.sum(dim=1).tolist()
        for row, total, tokens in zip(rows, totals, counts, strict=True):
            if (measured := LogProb.of(total, tokens)) is not None:
                row[name] = measured
    return rows
