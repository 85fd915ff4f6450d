"""Attempts as they are recorded, made by hand."""

import pytest

from astra_rl import Conversation
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Turn


def _turn(attack="ask", response="answer", score=0.0, logprob=None, tokens=4, **fields):
    value = JudgeScore(value=score, reason="no verdict" if score is None else None)
    logprobs = {} if logprob is None else {"baseline": LogProb(total=logprob, tokens=tokens)}
    return Turn(
        attack=attack,
        response=response,
        scores={"judge": value},
        **{"logprobs": logprobs, **fields},
    )


def _attempt(*turns, opening="hello", threshold=0.5, attacker="a", target="t", **fields):
    turns = [each if isinstance(each, Turn) else _turn(score=each) for each in turns]
    context = opening if isinstance(opening, Conversation) else Conversation(opening)
    return Attempt.make(
        run="run",
        opening=context,
        target=target,
        attacker=attacker,
        turns=turns,
        judge="judge",
        threshold=threshold,
        **fields,
    )


@pytest.fixture
def turn():
    return _turn


@pytest.fixture
def attempt():
    return _attempt
