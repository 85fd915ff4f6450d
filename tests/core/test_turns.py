"""Two threads that compute in turns."""

import contextvars
import threading

import pytest
import torch

from astra_rl.core import turns as turns_module
from astra_rl.core.moderator import Moderator, reason_of
from astra_rl.core.seeding import seeded
from astra_rl.core.turns import Turns, give_way, lending, taking_turns, waiting
from astra_rl.moderators.fault_tolerant import FaultTolerantModerator

PATIENCE = 60


def started(turns, work):
    """A thread that works in turns with this one."""
    context = contextvars.copy_context()

    def run():
        with taking_turns(turns):
            work()

    thread = threading.Thread(target=lambda: context.run(run), daemon=True)
    thread.start()
    while not turns.is_wanted:
        pass
    return thread


def is_free(turns):
    """Whether nobody has the turn, so that it is had at once."""
    had = threading.Event()

    def take():
        with taking_turns(turns):
            had.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return had.is_set()


def test_a_thread_computes_only_while_the_other_one_waits():
    turns, seen = Turns(), []
    with taking_turns(turns):
        other = started(turns, lambda: seen.append("other"))
        seen.append("this")
        with waiting():
            other.join(PATIENCE)
        seen.append("this again")
    assert seen == ["this", "other", "this again"]


def test_both_wait_for_engines_at_the_same_time():
    turns, meeting = Turns(), threading.Barrier(2, timeout=PATIENCE)

    def work():
        with waiting():
            meeting.wait()

    with taking_turns(turns):
        other = started(turns, work)
        with waiting():
            meeting.wait()  # neither passes it alone
            other.join(PATIENCE)
    assert not other.is_alive()


def test_giving_way_lets_the_one_that_waits_longest_compute():
    turns, seen = Turns(), []
    with taking_turns(turns):
        threads = [started(turns, lambda: seen.append(0))]
        give_way()
        assert seen == [0]
        give_way()  # nobody waits
        with waiting():
            threads[0].join(PATIENCE)


def test_the_random_generator_of_a_thread_is_not_that_of_the_other():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    turns, drawn = Turns(), []

    def work():
        with seeded(7):
            for _ in range(2):
                drawn.append(torch.rand(1).item())
                with waiting():
                    pass

    with taking_turns(turns):
        other = started(turns, work)
        found = []
        for _ in range(3):
            found.append(torch.rand(1))
            give_way()
        with waiting():
            other.join(PATIENCE)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=0)
    with seeded(7):
        assert drawn == [torch.rand(1).item() for _ in range(2)]


def test_a_wait_inside_another_and_one_without_turns_do_nothing():
    with waiting():
        pass
    turns = Turns()
    with taking_turns(turns), waiting(), waiting():
        give_way()
        assert is_free(turns)


def test_an_error_while_waiting_leaves_the_turns_in_order():
    turns = Turns()
    with pytest.raises(ValueError, match="engine"), taking_turns(turns), waiting():
        raise ValueError("engine")
    with taking_turns(turns):
        pass


@pytest.mark.parametrize("gives_way", [True, False], ids=["giving way", "after a wait"])
def test_an_interrupt_while_the_turn_is_another_threads_leaves_the_turns_in_order(
    gives_way, monkeypatch
):
    turns, goes_on = Turns(), threading.Event()

    def interrupted(predicate):
        raise KeyboardInterrupt

    def work():
        with taking_turns(turns):
            other = started(turns, lambda: goes_on.wait(PATIENCE))
            try:
                with monkeypatch.context() as patched:
                    patched.setattr(turns.changed, "wait_for", interrupted)
                    if gives_way:
                        give_way()
                    else:
                        with waiting():
                            pass
            finally:  # what a step does on its way out
                goes_on.set()
                with waiting():
                    other.join(PATIENCE)
                assert not other.is_alive()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not turns.line
    assert is_free(turns)


def helped(work):
    """What a moderator with a time limit does: a thread of its own computes in the turn."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(work), daemon=True)
    thread.start()
    return thread


def test_a_helper_gives_the_turn_of_the_thread_that_waits_for_it_away_and_back():
    turns, seen, meeting = Turns(), [], threading.Barrier(2, timeout=PATIENCE)

    def work():
        seen.append("computes in the lent turn")
        with waiting():
            meeting.wait()
        seen.append("again")

    def play():
        with lending():
            helped(work).join(PATIENCE)
        seen.append("back")

    with taking_turns(turns):
        other = started(turns, play)
        with waiting():
            meeting.wait()
        seen.append("this one")
        with waiting():
            other.join(PATIENCE)
    assert seen[0] == "computes in the lent turn"
    assert sorted(seen[1:]) == ["again", "back", "this one"]
    assert not turns.is_wanted


def test_a_helper_that_takes_too_long_has_no_turn_any_more():
    turns, ends, drawn = Turns(), threading.Event(), []

    def work():
        with waiting():
            ends.wait(PATIENCE)
        with waiting():  # after its time
            pass

    with seeded(1), taking_turns(turns):
        torch.rand(1)
        expected = torch.random.get_rng_state()
        with lending():
            thread = helped(work)
            while turns.line:  # until the helper has given the turn away
                pass
        drawn.append(torch.equal(torch.random.get_rng_state(), expected))
        ends.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        drawn.append(torch.equal(torch.random.get_rng_state(), expected))
        assert len(turns.line) == 1  # this thread has the turn
        with waiting():  # and can give it away
            assert is_free(turns)
    assert drawn == [True, True]


def test_a_helper_whose_time_ends_while_it_takes_the_turn_does_not_give_that_of_its_thread_away():
    turns, gone, ends = Turns(), threading.Event(), threading.Event()
    lent = []

    class EndsHere:
        """A lock; the time of the helper ends right after it has the turn."""

        def __init__(self):
            self.lock = threading.Lock()

        def __enter__(self):
            self.lock.acquire()

        def __exit__(self, *error):
            self.lock.release()
            if threading.current_thread() is not threading.main_thread() and lent[0]._is_held:
                gone.set()
                ends.wait(PATIENCE)

    def work():
        lent.append(turns_module._turns.get())
        lent[0]._lock = EndsHere()
        with waiting():
            pass

    with taking_turns(turns):
        with lending():
            thread = helped(work)
            assert gone.wait(PATIENCE)
        ends.set()
        thread.join(PATIENCE)
        assert len(turns.line) == 1  # this thread has the turn
    assert is_free(turns)


def test_a_moderator_with_a_time_limit_waits_without_the_turn_and_its_late_end_changes_nothing():
    ends, calls = threading.Event(), []

    class Endpoint(Moderator):
        def moderate(self, x):
            calls.append(len(x))
            if len(calls) == 2:
                with waiting():
                    ends.wait(PATIENCE)
            return [0.5] * len(x)

    moderator = FaultTolerantModerator(Endpoint(), time_limit=PATIENCE)
    turns, scores = Turns(), []

    def play():
        scores.extend(moderator.moderate(["a"]))
        moderator.time_limit = 0.2
        scores.extend(moderator.moderate(["b"]))

    with taking_turns(turns):
        other = started(turns, play)
        with waiting():
            other.join(PATIENCE)
        assert len(turns.line) == 1
    ends.set()
    assert scores[0] == 0.5
    assert reason_of(scores[1]) == "took too long"
