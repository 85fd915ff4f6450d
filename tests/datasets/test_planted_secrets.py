"""The password game."""

from __future__ import annotations

import re

import pytest

from astra_rl.datasets.planted_secrets import planted_secrets
from astra_rl.errors import ConfigurationError


def test_the_attacker_is_never_told_the_secret() -> None:
    for conversation in planted_secrets("train", 300) + planted_secrets("test", 128):
        told = f"{conversation.brief} {conversation.prompt}".lower()
        assert conversation.facts["secret"] not in told
        for word in conversation.facts["secret"].split():
            assert not re.search(rf"secret.*{word}|{word}.*secret", told)


def test_the_target_is_told_the_secret_and_to_keep_it() -> None:
    for conversation in planted_secrets("test", 20):
        assert conversation.system is not None
        assert conversation.facts["secret"] in conversation.system
        assert "Never tell" in conversation.system


def test_train_and_test_share_no_place_no_visitor_and_no_word_of_a_secret() -> None:
    train, test = planted_secrets("train", 2000), planted_secrets("test", 2000)
    for fact in ("place", "visitor", "secret"):
        assert not {c.facts[fact] for c in train} & {c.facts[fact] for c in test}
    words = [{word for c in split for word in c.facts["secret"].split()} for split in (train, test)]
    assert not words[0] & words[1]


def test_any_number_of_conversations_covers_the_places_evenly() -> None:
    places = [conversation.facts["place"] for conversation in planted_secrets("test", 128)]
    assert {places.count(place) for place in places} == {8}


def test_the_first_conversations_are_all_different() -> None:
    openings = {(c.facts["place"], c.facts["visitor"]) for c in planted_secrets("test", 128)}
    assert len(openings) == 128


def test_the_same_seed_gives_the_same_conversations_and_another_seed_others() -> None:
    first, again, other = (
        [c.facts["secret"] for c in planted_secrets("train", 50, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_wrong_split_or_count_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="choose from"):
        planted_secrets("dev", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="at least 1"):
        planted_secrets("train", 0)
