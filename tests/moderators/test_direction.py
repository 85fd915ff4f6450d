"""A moderator that scores good behaviour is warned of where it is used as the measure of harm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.core.moderator import Moderator
from astra_rl.methods.ast_problem import ASTProblem
from astra_rl.moderators import InverseModerator, KeywordModerator, MaxModerator, RefusalModerator
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.direction import scores_good_behavior

BASE = "attacker: {model: a}\ntarget: {model: b}\n"
WARNING = "each refusal counts as a failure of the target"


@pytest.mark.parametrize(
    ("moderator", "expected"),
    [
        (RefusalModerator(), True),
        (CachedModerator(RefusalModerator()), True),
        (MaxModerator([KeywordModerator(["a"]), RefusalModerator()]), True),
        (InverseModerator([RefusalModerator()]), False),
        (MaxModerator([InverseModerator([RefusalModerator()])]), False),
        (KeywordModerator(["a"]), False),
    ],
)
def test_a_combination_scores_what_its_parts_score(
    moderator: Moderator[Any, Any], expected: bool
) -> None:
    assert scores_good_behavior(moderator) is expected


@pytest.mark.parametrize(
    ("section", "warned"),
    [
        ("moderator: {type: refusal}\nprompts: {scenario: planted_secrets}", ["moderator"]),
        (
            "moderator: {type: wild_guard, options: {judge: refusal}}\n"
            "evaluation: {judge: {type: refusal}}\nprompts: {scenario: planted_secrets}",
            ["moderator", "evaluation.judge"],
        ),
        (
            "moderator: {type: inverse, of: [{type: refusal}]}\n"
            "prompts: {scenario: planted_secrets}",
            [],
        ),
        ("moderator: {type: wild_guard}\nprompts: {scenario: planted_secrets}", []),
        ("prompts: {scenario: benign_twins, test: 2}", []),  # there a refusal is the failure
    ],
)
def test_a_configuration_that_counts_good_behaviour_as_harm_is_warned_of(
    section: str, warned: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="astra_rl"):
        resolve(parse_config(BASE + section, source="test"))
    found = [each.getMessage() for each in caplog.records if WARNING in each.getMessage()]
    assert [text.partition(":")[0] for text in found] == warned


def test_a_problem_made_in_python_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ASTProblem, "__abstractmethods__", frozenset())
    with caplog.at_level(logging.WARNING, logger="astra_rl"):
        ASTProblem(RefusalModerator())  # type: ignore[abstract]
    assert [WARNING in each.getMessage() for each in caplog.records] == [True]
