import sys

import pytest

from astra_rl.errors import MissingDependencyError
from astra_rl.moderators import ProfanityModerator


def test_rude_texts_score_high_and_kind_ones_low():
    rude, kind = ProfanityModerator().moderate(["you damn idiot", "have a nice day"])
    assert 0 <= kind < 0.2 < 0.8 < rude <= 1


def test_a_text_scores_the_same_alone_and_in_a_batch():
    moderator = ProfanityModerator()
    texts = ["you idiot", "", "good morning", "damn"]
    scores = moderator.moderate(texts)
    assert scores == [moderator.moderate([text])[0] for text in texts]
    assert all(isinstance(score, float) for score in scores)


def test_no_texts_give_no_scores():
    assert ProfanityModerator().moderate([]) == []


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(MissingDependencyError, match="extra 'profanity'"):
        ProfanityModerator()
