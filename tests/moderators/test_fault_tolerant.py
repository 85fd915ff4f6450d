"""What goes wrong in a moderator is a missing score with its reason, or an error with a name."""

import ctypes
import math
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.processes import Forked

from astra_rl.core.level import current_level
from astra_rl.core.moderator import Moderator, Score, count_missing
from astra_rl.core.seeding import current_row_seeds, row_seeds
from astra_rl.errors import (
    ConfigurationError,
    ContractError,
    MissingDependencyError,
    ModelError,
    ModeratorError,
)
from astra_rl.moderators import FaultTolerantModerator, FunctionModerator, fault_tolerant
from astra_rl.moderators.identity import identity_of
from astra_rl.testing import ScriptedModerator, check_moderator


class Faulty(Moderator):
    """Scores 0.5, but does as told with some texts."""

    def __init__(self, **does):
        self.does = does
        self.calls = []

    def moderate(self, x):
        self.calls.append(list(x))
        scores = []
        for text in x:
            done = self.does.get(text, 0.5)
            if isinstance(done, Exception):
                raise done
            scores.append(done() if callable(done) else done)
        return [score for score in scores if score != "none"]


def scored(**does):
    """A moderator that has shown that it works."""
    moderator = FaultTolerantModerator(Faulty(**does), time_limit=None)
    assert moderator.moderate(["fine"]) == [0.5]
    return moderator


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (ValueError("no such thing"), "the moderator raised ValueError"),
        (ZeroDivisionError(), "the moderator raised ZeroDivisionError"),
        (ContractError("scores of two"), "the moderator raised ContractError"),
        (ModelError("logits are not finite"), "the moderator raised ModelError"),
        (TimeoutError("of its own"), "took too long"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (1.5, "out of range"),
        (-0.1, "out of range"),
        ("0.7", "not a number"),
        (None, "not a number"),
        ([0.5], "not a number"),
        (True, "not a number"),
        (Score.missing("unparsable verdict"), "unparsable verdict"),
        ("none", "the moderator raised ContractError"),
    ],
    ids=str,
)
def test_a_fault_costs_its_own_text_its_score_and_no_other(does, reason):
    moderator = scored(bad=does)
    scores = moderator.moderate(["fine", "bad", "good"])
    if isinstance(does, TimeoutError):
        assert count_missing(scores) == {reason: 3}  # a call that takes long is not made again
        return
    assert [scores[0], scores[2]] == [0.5, 0.5]
    assert count_missing(scores) == {reason: 1}


def test_a_moderator_that_is_down_is_not_asked_about_every_text():
    moderator = scored(**{str(number): OSError("connection refused") for number in range(100)})
    scores = moderator.moderate([str(number) for number in range(100)])
    assert count_missing(scores) == {"the moderator raised OSError": 100}
    assert len(moderator.inner.calls) <= 6


def test_one_that_never_gave_a_score_is_an_error_that_says_why():
    moderator = FaultTolerantModerator(Faulty(a=ValueError("no model"), b=ValueError("no model")))
    with pytest.raises(
        ModeratorError, match=r"Faulty has never returned a score: .*no model"
    ) as it:
        moderator.moderate(["a", "b"])
    assert isinstance(it.value.__cause__, ValueError)
    contract = FaultTolerantModerator(FunctionModerator(lambda texts: [0.5]))
    with pytest.raises(ContractError, match="returned 1 values for 2 inputs"):
        contract.moderate(["a", "b"])


@pytest.mark.parametrize(
    "error", [ConfigurationError("bad option"), MissingDependencyError("not installed")]
)
def test_what_is_wrong_with_the_settings_is_raised_always(error):
    moderator = scored(bad=error)
    with pytest.raises(type(error)):
        moderator.moderate(["bad"])


def test_one_that_hangs_is_not_waited_for():
    released = threading.Event()
    inner = Faulty(slow=lambda: released.wait(300) and 0.5)
    moderator = FaultTolerantModerator(inner, time_limit=60)
    moderator.moderate(["fine"])
    moderator.time_limit = 0.2
    assert count_missing(moderator.moderate(["slow", "fine"])) == {"took too long": 2}
    assert count_missing(moderator.moderate(["fine"])) == {"took too long": 1}  # still busy
    released.set()
    moderator.time_limit = 60
    assert moderator.moderate(["fine"]) == [0.5]


def test_one_that_hangs_from_the_start_is_an_error():
    released = threading.Event()
    inner = Faulty(slow=lambda: released.wait(60))
    moderator = FaultTolerantModerator(inner, time_limit=0.05)
    with pytest.raises(ModeratorError, match=r"no score within 0\.05 s"):
        moderator.moderate(["slow"])
    released.set()
    with pytest.raises(ConfigurationError, match="time_limit=0"):
        FaultTolerantModerator(Faulty(), time_limit=0)


def test_a_time_limit_changes_nothing_about_where_it_is_asked():
    seen = []

    def look(texts):
        seen.append((torch.is_grad_enabled(), current_row_seeds(2), current_level(texts).depth))
        return [0.5, 0.5]

    moderator = FaultTolerantModerator(FunctionModerator(look), time_limit=60)
    with torch.no_grad(), row_seeds([7, 8]):
        assert moderator.moderate(["a", "b"]) == [0.5, 0.5]
        look(["a", "b"])
    assert seen[0] == seen[1]


def test_scores_and_identity_are_those_of_the_one_inside():
    inner = ScriptedModerator({"boom": 1.0}, default=0.25)
    moderator = FaultTolerantModerator(inner, time_limit=60)
    assert moderator.moderate(["boom", "calm"]) == [1.0, 0.25]
    assert moderator.moderate([]) == []
    assert identity_of(moderator) == identity_of(inner)
    check_moderator(moderator)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(["fine", "raises", "nan", "wild", "none", "text"]), min_size=1, max_size=12
    )
)
def test_whatever_fails_there_is_one_score_per_text_in_order(kinds):
    moderator = scored(raises=ValueError(), nan=math.nan, wild=7.0, none="none", text="x")
    scores = moderator.moderate(kinds)
    assert len(scores) == len(kinds)
    for kind, score in zip(kinds, scores, strict=True):
        if kind == "fine":
            assert score == 0.5 or score.reason.startswith("the moderator raised")
        else:
            assert math.isnan(score)
            assert score.reason


def catastrophic(texts):
    """Score texts, as a regular expression that backtracks does: for some it holds the lock."""
    if texts != ["fine"]:
        ctypes.PyDLL(None).sleep(4)  # a function of C that is called with the lock
    return [0.5] * len(texts)


def held_up():
    fault_tolerant.GRACE = 1.2
    moderator = FaultTolerantModerator(FunctionModerator(catastrophic), time_limit=60)
    print(moderator.moderate(["fine"]))
    moderator.time_limit = 0.3
    print(moderator.moderate(["long"])[0].reason)
    moderator.time_limit = 60
    print(moderator.moderate(["fine"]), flush=True)


@pytest.mark.slow
def test_one_that_holds_the_lock_of_python_is_named_while_it_does(tmp_path):
    """It cannot be left; that it is the cause is said, and then it is counted."""
    printed = tmp_path / "printed"
    code, errors = Forked(held_up, cwd=tmp_path, output=printed).wait()
    assert code == 0, errors
    assert printed.read_text().splitlines() == ["[0.5]", "took too long", "[0.5]"]
    assert "Timeout (0:00:01" in errors
    assert "in catastrophic" in errors
    assert "in moderate" in errors


@pytest.fixture
def armed(monkeypatch):
    """Seconds for which the watchdog was set, by a clock that stands still; None if cancelled."""
    armed = []
    watchdog = SimpleNamespace(
        dump_traceback_later=lambda wait, **told: armed.append(wait),
        cancel_dump_traceback_later=lambda: armed.append(None),
    )
    monkeypatch.setattr(fault_tolerant, "faulthandler", watchdog)
    monkeypatch.setattr(fault_tolerant, "time", SimpleNamespace(monotonic=lambda: 0.0))
    return armed


def test_one_that_can_be_left_or_is_in_time_is_not_named(armed, monkeypatch):
    """The watchdog is cancelled as soon as the moderator is left."""
    monkeypatch.setattr(fault_tolerant, "GRACE", 1000)
    released = threading.Event()
    inner = Faulty(slow=lambda: released.wait(60) and 0.5)
    moderator = FaultTolerantModerator(inner, time_limit=60)
    moderator.moderate(["fine"])
    moderator.time_limit = 0.1
    assert count_missing(moderator.moderate(["slow"])) == {"took too long": 1}
    assert armed == [1060, None, 1000.1, None]
    released.set()


def test_one_that_ends_beyond_its_limit_took_too_long_even_if_nothing_else_could_run(monkeypatch):
    """The clock says so: the thread that waits may come to run when the score is there."""
    now = [0.0]
    monkeypatch.setattr(fault_tolerant, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def hold_up():
        now[0] += 61
        return 0.5

    moderator = FaultTolerantModerator(Faulty(slow=hold_up), time_limit=60)
    assert moderator.moderate(["fine"]) == [0.5]
    assert count_missing(moderator.moderate(["slow"])) == {"took too long": 1}
    assert moderator.moderate(["fine"]) == [0.5]


def test_of_moderators_within_moderators_the_first_to_be_late_is_watched(armed):
    watchdog = fault_tolerant.StallWatchdog()
    with watchdog.watched(100):
        with watchdog.watched(5):
            pass
        with watchdog.watched(500):
            pass
    assert armed == [110, 15, 110, 110, 110, None]
