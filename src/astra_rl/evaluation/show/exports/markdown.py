"""Summary in Markdown, for a pull-request comment."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.measures.text_clusters import GreedyClusters
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.show.escaping import markdown_text, shorten
from astra_rl.evaluation.stats.percent import between, format_percent
from astra_rl.evaluation.stats.rates import describe_rate
from astra_rl.infra.jsonio import write_atomic

TEXT_LIMIT = 200


def write_markdown(
    attempts: Iterable[Attempt] | AttemptSource,
    path: str | Path,
    *,
    planned: int | None = None,
    sequential: bool = False,
) -> int:
    """Write `markdown_summary` to a file; return the number of attempts."""
    source = source_of(attempts)
    write_atomic(path, markdown_summary(source, planned=planned, sequential=sequential))
    return sum(1 for _ in source.rows())


def markdown_summary(
    attempts: Iterable[Attempt] | AttemptSource,
    *,
    planned: int | None = None,
    sequential: bool = False,
    most: int = 10,
) -> str:
    """Return a table of numbers, and the kinds of successful attack, most frequent first.

    Args:
        attempts: Attempts of one or several attackers and targets.
        planned: Number of planned attempts; used for a single attacker and target only.
        sequential: Whether the evaluation could stop early, see `Rate`.
        most: Maximum number of kinds of attack.
    """
    source = source_of(attempts)
    pairs = dict.fromkeys(map(_pair, source.rows()))
    lines = ["# Attack success rate", ""]
    for pair in pairs:
        attacker, target, judge, threshold = pair
        rows = (row for row in source.rows(order="prompt") if _pair(row) == pair)
        summary = summarise_prompts(
            by_prompt(rows),
            planned=planned if len(pairs) == 1 else None,
            sequential=sequential,
        )
        lines += [
            f"{markdown_text(attacker)} against {markdown_text(target)}, judged by "
            f"{markdown_text(judge)} (success: score of at least {threshold:g}):",
            "",
            *_numbers(summary),
            "",
        ]
    findings = _findings(source, most)
    if findings:
        lines += ["## Successful attacks", "", *findings, ""]
    return "\n".join(lines)


def _pair(row: AttemptRow) -> tuple[str, str, str, float]:
    return row.attacker, row.target, row.judge, row.threshold


def _numbers(summary: Summary) -> list[str]:
    asr = summary.asr
    rows = [
        ("attack success rate, any turn", describe_rate(asr)),
        ("attack success rate, last turn", describe_rate(summary.asr_last_turn)),
    ]
    rows += [(name, describe_rate(rate)) for name, rate in summary.of_agents]
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


def _findings(source: AttemptSource, most: int) -> list[str]:
    kinds = GreedyClusters()
    sizes: Counter[int] = Counter()
    prompts: defaultdict[int, list[str]] = defaultdict(list)
    first: dict[int, int] = {}  # place of the first attempt of each kind
    for number, attempt in enumerate(source.attempts()):
        if attempt.outcome is Outcome.SUCCESS and (turn := attempt.failing_turn):
            kind = kinds.add(turn.attack)
            sizes[kind] += 1
            prompts[kind].append(attempt.prompt_id)
            first.setdefault(kind, number)
    if not sizes:
        return []
    effective = effective_number([sizes[kind] for kind in sizes], [prompts[kind] for kind in sizes])
    lines = [
        f"Effective number of kinds: {effective.text}; {len(sizes)} were seen, by words.",
        "",
    ]
    lines += ["| times | opening and attack | response | attempt |", "| ---: | --- | --- | --- |"]
    largest = sizes.most_common(most)  # of equal ones the earliest
    wanted = {first[kind] for kind, _ in largest}
    shown = {at: each for at, each in enumerate(source.attempts()) if at in wanted}
    for kind, size in largest:
        attempt = shown[first[kind]]
        response = attempt.failing_turn.response if attempt.failing_turn else ""
        texts = (attempt.failing_request, response)
        said = " | ".join(markdown_text(shorten(text, TEXT_LIMIT)) for text in texts)
        lines.append(f"| {size} | {said} | {attempt.id} |")
    if len(sizes) > most:
        lines += ["", f"{len(sizes) - most} more kinds are not shown."]
    return lines
