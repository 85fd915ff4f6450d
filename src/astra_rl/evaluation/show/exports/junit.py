"""Attempts as JUnit XML, which CI systems show as test results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.escaping import shorten, xml_text
from astra_rl.infra.jsonio import write_atomic

TEXT_LIMIT = 10_000
_BROKEN = {Outcome.ERROR: "error", Outcome.UNSCORED: "unscored"}


def write_junit(
    attempts: Iterable[Attempt], path: str | Path, *, planned: int | None = None
) -> int:
    """Write one suite per target and one test case per attempt; return the number of cases.

    A test fails if the attack succeeded. An attempt with an error or a missing score is an error,
    never a pass; so is every planned attempt that was never made.

    Args:
        attempts: Attempts of any number of targets.
        path: Output file.
        planned: Number of planned attempts; None means `len(attempts)`.
    """
    suites: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        suites[attempt.target].append(attempt)
    root = ElementTree.Element("testsuites", name="astra-rl")
    for target, members in suites.items():
        root.append(_suite(target, members))
    missing = max(0, (planned or 0) - sum(map(len, suites.values())))
    if missing:
        root.append(_never_made(missing))
    _count(root, [attempt for members in suites.values() for attempt in members], missing)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_atomic(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')
    return sum(map(len, suites.values())) + missing


def _suite(target: str, attempts: Sequence[Attempt]) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=xml_text(shorten(target, 200)))
    _count(suite, attempts)
    suite.extend(map(_case, attempts))
    return suite


def _never_made(count: int) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name="never made")
    _count(suite, [], count)
    for number in range(1, count + 1):
        case = ElementTree.SubElement(
            suite, "testcase", classname="never made", name=f"planned attempt {number} of {count}"
        )
        ElementTree.SubElement(case, "error", type="error", message="the attempt was never made")
    return suite


def _count(element: ElementTree.Element, attempts: Sequence[Attempt], missing: int = 0) -> None:
    failures = sum(attempt.outcome is Outcome.SUCCESS for attempt in attempts)
    errors = sum(attempt.outcome in _BROKEN for attempt in attempts) + missing
    seconds = math.fsum(attempt.seconds or 0 for attempt in attempts)
    element.set("tests", str(len(attempts) + missing))
    element.set("failures", str(failures))
    element.set("errors", str(errors))
    element.set("time", f"{seconds:.3f}")


def _case(attempt: Attempt) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=xml_text(shorten(attempt.category or attempt.phase, 200)),
        name=xml_text(f"{shorten(attempt.prompt_id, 200)} trial {attempt.trial} [{attempt.id}]"),
        time=f"{attempt.seconds or 0:.3f}",
    )
    if attempt.outcome is Outcome.SUCCESS:
        message = (
            f"attack success in turn {attempt.first_failing_turn}: {attempt.judge} scored "
            f"{attempt.score:.3g}, threshold {attempt.threshold:g}"
        )
        failure = ElementTree.SubElement(
            case, "failure", type=attempt.outcome.value, message=xml_text(message)
        )
        failure.text = xml_text(_transcript(attempt))
    elif attempt.outcome in _BROKEN:
        message = attempt.error or "; ".join(dict.fromkeys(attempt.reasons)) or "no score"
        ElementTree.SubElement(
            case, "error", type=attempt.outcome.value, message=xml_text(shorten(message, 500))
        )
    return case


def _transcript(attempt: Attempt) -> str:
    opening = attempt.opening
    before = (("opening", opening.prompt), *(("earlier turn", text) for text in opening.turns))
    lines = [f"{name}: {shorten(text, TEXT_LIMIT)}" for name, text in before if text]
    for number, turn in enumerate(attempt.turns, 1):
        lines += [
            f"[{number}] attack: {shorten(turn.attack, TEXT_LIMIT)}",
            f"[{number}] response: {shorten(turn.response, TEXT_LIMIT)}",
        ]
    return "\n".join(lines)
