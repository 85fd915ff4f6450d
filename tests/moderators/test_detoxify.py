import math
import sys
from types import ModuleType

import pytest

from astra_rl.errors import ConfigurationError, MissingDependencyError
from astra_rl.moderators import DetoxifyModerator


class FakeDetoxify:
    """What the package offers: scores per class, a list for a list of texts."""

    def __init__(self, model_type, device):
        self.model_type, self.device = model_type, device
        self.class_names = ["toxicity", "insult"]
        self.calls = []

    def predict(self, texts):
        assert type(texts) is list
        self.calls.append(texts)
        toxicity = [math.nan if text == "odd" else len(text) / 100 for text in texts]
        return {"toxicity": toxicity, "insult": [score / 2 for score in toxicity]}


@pytest.fixture(autouse=True)
def _fake_package(monkeypatch):
    module = ModuleType("detoxify")
    module.Detoxify = FakeDetoxify
    monkeypatch.setitem(sys.modules, "detoxify", module)


def test_the_chosen_category_of_the_chosen_variant_is_the_score():
    moderator = DetoxifyModerator("insult", "unbiased", device="cuda:1")
    assert moderator.moderate(["aa", "bbbb"]) == [0.01, 0.02]
    assert (moderator.model.model_type, moderator.model.device) == ("unbiased", "cuda:1")


def test_texts_are_read_in_batches_of_similar_length_and_scored_in_order():
    moderator = DetoxifyModerator(batch_size=2)
    assert moderator.moderate(["ccc", "a", "dddd", "bb", ""]) == [0.03, 0.01, 0.04, 0.02, 0.0]
    assert moderator.model.calls == [["", "a"], ["bb", "ccc"], ["dddd"]]


def test_an_output_that_is_not_finite_is_a_missing_score():
    odd, even = DetoxifyModerator().moderate(["odd", "even"])
    assert math.isnan(odd)
    assert even == 0.04


def test_no_texts_give_no_scores():
    assert DetoxifyModerator().moderate([]) == []


def test_a_wrong_category_is_answered_with_the_categories_there_are():
    with pytest.raises(ConfigurationError, match=r"\['insult', 'toxicity'\].*mean 'toxicity'"):
        DetoxifyModerator("toxicty")


def test_a_wrong_variant_is_answered_with_the_variants_there_are():
    with pytest.raises(ConfigurationError, match=r"multilingual.*mean 'unbiased'"):
        DetoxifyModerator(variant="unbias")


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        DetoxifyModerator(batch_size=0)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(MissingDependencyError, match="extra 'detoxify'"):
        DetoxifyModerator()
