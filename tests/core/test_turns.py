"""Two threads that compute in turns."""

import contextvars
import threading

import pytest
import torch

from astra_rl.core.seeding import seeded
from astra_rl.core.turns import Turns, give_way, taking_turns, waiting

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
        turns.acquire()  # it is free
        turns.release()


def test_an_error_while_waiting_leaves_the_turns_in_order():
    turns = Turns()
    with pytest.raises(ValueError, match="engine"), taking_turns(turns), waiting():
        raise ValueError("engine")
    with taking_turns(turns):
        pass
