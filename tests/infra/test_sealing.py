"""Credentials in cached replies and states: in no file, and back when they are read."""

import json

import pytest

from astra_rl.core.text import NoReply, Utterance
from astra_rl.errors import TrainingError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.infra import redaction
from astra_rl.infra.redaction import REDACTED, keep_secret, open_text, seal_text
from astra_rl.targets.ledger import Ledger
from astra_rl.targets.reply_cache import ReplyCache, from_cache
from astra_rl.training.states import load_state, save_state

KEY, OTHER = "sentinel-4f2c9d41-credential", "sentinel-4f2c9d41-credential-longer"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(redaction, "_registered", frozenset())
    monkeypatch.setattr(redaction, "_forms", ())
    keep_secret(KEY)
    keep_secret(OTHER)


def forget(monkeypatch):
    monkeypatch.setattr(redaction, "_registered", frozenset())
    monkeypatch.setattr(redaction, "_forms", ())


@pytest.mark.parametrize(
    "text",
    [
        *("", "none", REDACTED, KEY, KEY + KEY, f"{OTHER} and {KEY}{OTHER}", f"{REDACTED}{KEY}"),
        f"the key is {KEY}, {REDACTED} and {KEY}.",
    ],
)
def test_a_text_is_restored_and_its_stored_form_has_no_credential(text, monkeypatch):
    sealed = json.loads(json.dumps(seal_text(text)))
    assert KEY not in json.dumps(sealed)
    assert open_text(sealed) == text
    forget(monkeypatch)
    assert open_text(sealed) == (None if KEY in text else text)


@pytest.mark.parametrize("damaged", [None, 3, {}, [3], [["x"]], [[]], [[3]], ["a", None]])
def test_what_is_no_sealed_text_is_none(damaged):
    assert open_text(damaged) is None


def test_a_cached_reply_is_the_reply(tmp_path, monkeypatch):
    """The first answer leaks a credential; so does the answer from the cache."""
    path, asked = tmp_path / "replies.sqlite", []

    def ask(items, told):
        asked.extend(items)
        for index in range(len(items)):
            told(index, Utterance(f"the key is {KEY}"))
        return [Utterance(f"the key is {KEY}") for _ in items]

    def reply():
        with ReplyCache(path).answering(), Ledger().charging():
            return str(from_cache("target", ["a"], str, ask)[0])

    assert reply() == reply() == f"the key is {KEY}"
    assert asked == ["a"]
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
    forget(monkeypatch)
    assert reply() == f"the key is {KEY}"
    assert asked == ["a", "a"]  # not known without the credential, so asked again


def test_a_state_has_the_texts_that_were_saved(tmp_path, monkeypatch):
    state = {"replay": [f"say {KEY}", REDACTED, ("x", {f"k {KEY}": 1})]}
    place = save_state(tmp_path, 1, state)
    for file in place.iterdir():
        assert KEY.encode() not in file.read_bytes()
    assert load_state(tmp_path) == (1, state)
    forget(monkeypatch)
    with pytest.raises(TrainingError, match="environment variables that held credentials"):
        load_state(tmp_path)


def test_a_recorded_response_that_lost_a_credential_is_unscored_when_it_is_judged_again():
    from astra_rl.actions.score import rescore
    from astra_rl.moderators import KeywordModerator

    turn = Turn(attack="a", response=f"key {KEY}", scores={"judge": JudgeScore(value=0.9)})
    attempt = Attempt.make(run="r", opening="o", target="t", attacker="a", turns=[turn], judge="j")
    recorded = Attempt.from_json(attempt.to_json())
    assert REDACTED in recorded.turns[0].response
    (exchange,) = recorded.exchanges()
    assert isinstance(exchange.response, NoReply)
    (again,) = rescore([recorded], KeywordModerator(["sentinel"]))
    assert again.outcome is Outcome.UNSCORED
