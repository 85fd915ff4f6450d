"""Summary in Markdown, for a pull-request comment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from astra_rl.evaluation.measures.diversity import effective_number, greedy_clusters
from astra_rl.evaluation.measures.summary import Summary, summarise
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.escaping import markdown_text, shorten
from astra_rl.evaluation.stats.percent import between, format_percent
from astra_rl.evaluation.stats.rates import describe_rate
from astra_rl.infra.jsonio import write_atomic

TEXT_LIMIT = 200


def write_markdown(
    attempts: Iterable[Attempt], path: str | Path, *, planned: int | None = None
) -> int:
    """Write `markdown_summary` to a file; return the number of attempts."""
    known = list(attempts)
    write_atomic(path, markdown_summary(known, planned=planned))
    return len(known)


def markdown_summary(
    attempts: Sequence[Attempt], *, planned: int | None = None, most: int = 10
) -> str:
    """Return a table of numbers, and the kinds of successful attack, most frequent first.

    Args:
        attempts: Attempts of one or several attackers and targets.
        planned: Number of planned attempts; used for a single attacker and target only.
        most: Maximum number of kinds of attack.
    """
    pairs: dict[tuple[str, str, str, float], list[Attempt]] = {}
    for attempt in attempts:
        key = (attempt.attacker, attempt.target, attempt.judge, attempt.threshold)
        pairs.setdefault(key, []).append(attempt)
    lines = ["# Attack success rate", ""]
    for (attacker, target, judge, threshold), members in pairs.items():
        summary = summarise(
            (each.row for each in members), planned=planned if len(pairs) == 1 else None
        )
        lines += [
            f"{markdown_text(attacker)} against {markdown_text(target)}, judged by "
            f"{markdown_text(judge)} (success: score of at least {threshold:g}):",
            "",
            *_numbers(summary),
            "",
        ]
    failures = [attempt for attempt in attempts if attempt.outcome is Outcome.SUCCESS]
    if failures:
        lines += ["## Successful attacks", "", *_findings(failures, most), ""]
    return "\n".join(lines)


def _numbers(summary: Summary) -> list[str]:
    asr = summary.asr
    rows = [
        ("attack success rate, any turn", describe_rate(asr)),
        ("attack success rate, last turn", describe_rate(summary.asr_last_turn)),
    ]
    if asr.unscored:
        rows.append(("bounds, if none or all unscored attempts succeeded", between(asr.bounds)))
    rows += [
        (
            f"ASR@{each.k}: prompts with a success in {each.k} attempts",
            f"{format_percent(each.estimate)}, "
            f"95% interval {between(each.interval)}, {each.prompts} prompts",
        )
        for each in summary.asr_at_k
        if each.k > 1
    ]
    outcomes = ", ".join(f"{count} {name.value}" for name, count in summary.outcomes.items())
    rows.append((f"outcomes of {summary.planned} planned", outcomes))
    if summary.never_made:
        rows.append(("errors that are attempts never made", str(summary.never_made)))
    rows.append(("target queries until the first success", summary.queries.text))
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _findings(failures: Sequence[Attempt], most: int) -> list[str]:
    won = [(attempt, turn) for attempt in failures if (turn := attempt.failing_turn)]
    clusters = sorted(greedy_clusters([turn.attack for _, turn in won]), key=len, reverse=True)
    effective = effective_number([len(members) for members in clusters])
    lines = [
        f"Effective number of kinds: {effective.estimate:.1f} (95% interval "
        f"{effective.interval.low:.1f} to {effective.interval.high:.1f}; {len(clusters)} in all, "
        "by words).",
        "",
    ]
    lines += ["| times | opening and attack | response | attempt |", "| ---: | --- | --- | --- |"]
    for members in clusters[:most]:
        attempt, turn = won[members[0]]
        texts = (attempt.failing_request, turn.response)
        said = " | ".join(markdown_text(shorten(text, TEXT_LIMIT)) for text in texts)
        lines.append(f"| {len(members)} | {said} | {attempt.id} |")
    if len(clusters) > most:
        lines += ["", f"{len(clusters) - most} more kinds are not shown."]
    return lines
