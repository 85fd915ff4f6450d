"""Attempts as JUnit XML, which CI systems show as test results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.show.escaping import shorten, xml_text
from astra_rl.infra.jsonio import atomic_file

TEXT_LIMIT = 10_000
_BROKEN = {Outcome.ERROR: "error", Outcome.UNSCORED: "unscored"}


def write_junit(
    attempts: Iterable[Attempt] | AttemptSource, path: str | Path, *, planned: int | None = None
) -> int:
    """Write one suite per target and one test case per attempt; return the number of cases.

    A test fails if the attack succeeded. An attempt with an error or a missing score is an error,
    never a pass; so is every planned attempt that was never made.

    Args:
        attempts: Attempts of any number of targets.
        path: Output file.
        planned: Number of planned attempts; None means `len(attempts)`.
    """
    source = source_of(attempts)
    suites: dict[str, _Counts] = {}
    for attempt in source.attempts():
        suites.setdefault(attempt.target, _Counts()).add(attempt)
    every = _Counts.sum(suites.values())
    missing = max(0, (planned or 0) - every.tests)
    never_made = _Counts(missing, 0, missing)
    with atomic_file(path) as file:
        file.write('<?xml version="1.0" encoding="UTF-8"?>\n')
        file.write(_start("testsuites", "astra-rl", _Counts.sum([every, never_made])))
        for target, counts in suites.items():
            cases = (_case(each) for each in source.attempts() if each.target == target)
            file.writelines(_suite(xml_text(shorten(target, 200)), counts, cases))
        if missing:
            file.writelines(_suite("never made", never_made, _never_made(missing)))
        file.write("</testsuites>\n" if suites or missing else "")
    return every.tests + missing


@dataclass
class _Counts:
    """Numbers of a suite."""

    tests: int = 0
    failures: int = 0
    errors: int = 0
    seconds: float = 0.0

    def add(self, attempt: Attempt) -> None:
        self.tests += 1
        self.failures += attempt.outcome is Outcome.SUCCESS
        self.errors += attempt.outcome in _BROKEN
        self.seconds += attempt.seconds or 0

    @classmethod
    def sum(cls, counts: Iterable[_Counts]) -> _Counts:
        total = cls()
        for each in counts:
            total.tests += each.tests
            total.failures += each.failures
            total.errors += each.errors
            total.seconds += each.seconds
        return total


def _start(tag: str, name: str, counts: _Counts) -> str:
    """Return the start tag of an element with its numbers."""
    element = ElementTree.Element(
        tag,
        name=name,
        tests=str(counts.tests),
        failures=str(counts.failures),
        errors=str(counts.errors),
        time=f"{counts.seconds:.3f}",
    )
    is_empty = not counts.tests
    text = ElementTree.tostring(element, encoding="unicode")
    return text + "\n" if is_empty else text.removesuffix(" />") + ">\n"


def _suite(name: str, counts: _Counts, cases: Iterable[ElementTree.Element]) -> Iterator[str]:
    """Yield the lines of a suite, case by case."""
    yield "  " + _start("testsuite", name, counts)
    for case in cases:
        ElementTree.indent(case, level=2)
        yield "    " + ElementTree.tostring(case, encoding="unicode") + "\n"
    yield "  </testsuite>\n"


def _never_made(count: int) -> Iterator[ElementTree.Element]:
    for number in range(1, count + 1):
        case = ElementTree.Element(
            "testcase", classname="never made", name=f"planned attempt {number} of {count}"
        )
        ElementTree.SubElement(case, "error", type="error", message="the attempt was never made")
        yield case


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
