"""What the tests of bridges make attempts with."""

from __future__ import annotations

from astra_rl.core.text import GOAL, Conversation
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn


def turn(attack: str, response: str, score: float | None, **details: object) -> Turn:
    """A turn that the judge scored; None is a missing score."""
    judged = JudgeScore(value=score, reason=None if score is not None else "unparsable verdict")
    return Turn(attack=attack, response=response, scores={"judge": judged}, **details)


def attempt(*turns: Turn, opening: Conversation | str = "one", **details: object) -> Attempt:
    """An attempt of the run."""
    return Attempt.make(
        run="run", opening=opening, target="target", attacker="attacker", turns=turns,
        judge="judge", phase="after", **details,
    )  # fmt: skip


def opening(prompt: str, goal: str) -> Conversation:
    """An opening with a brief that ends in its goal, as of a scenario."""
    return Conversation(
        prompt, system="Be kind.", brief=f"You are a user.\n\n{goal}", facts={GOAL: goal},
        separator="\n",
    )  # fmt: skip


ATTEMPTS = [
    attempt(turn("ask", "a leak", 0.9), opening=opening("good evening", "a leak")),
    attempt(
        turn("ask", "no", 0.1), turn("more", "maybe", 0.6), opening=opening("hello", "more"),
    ),
    attempt(turn("ask", "no", 0.1), opening=opening("hello", "more"), trial=1),
    attempt(turn("ask", "?", None), opening=opening("what is new", "news")),
    attempt(opening=opening("bye", "an end"), error="timed out"),
]  # fmt: skip
