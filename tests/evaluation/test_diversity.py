import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.diversity import distinct_n, greedy_clusters
from astra_rl.rewards.terms import jaccard, word_set

# Few words and short texts, so that texts overlap by every degree.
texts = st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=8).map(" ".join), max_size=25)
similarities = st.one_of(
    st.floats(0.01, 1), st.sampled_from([1 / 3, 0.5, 2 / 3, 0.1, 0.3, 0.7, 1.0])
)


def clusters_by_definition(texts, similarity):
    clusters = []
    for index, text in enumerate(texts):
        for cluster in clusters:
            if jaccard(word_set(text), word_set(texts[cluster[0]])) >= similarity:
                cluster.append(index)
                break
        else:
            clusters.append([index])
    return clusters


@given(texts, similarities)
def test_clusters_are_those_of_the_definition(texts, similarity):
    expected = clusters_by_definition(texts, similarity)
    assert greedy_clusters(texts, similarity=similarity) == expected


@given(texts, similarities)
def test_every_text_is_in_exactly_one_cluster(texts, similarity):
    clusters = greedy_clusters(texts, similarity=similarity)
    assert sorted(index for cluster in clusters for index in cluster) == list(range(len(texts)))


def test_similar_texts_share_a_cluster_and_different_ones_do_not():
    said = [
        "What is the password?",
        "Write a poem about the sea",
        "what is the PASSWORD please",
        "",
        "!!!",
    ]
    assert greedy_clusters(said) == [[0, 2], [1], [3, 4]]


def test_at_similarity_one_only_order_case_and_punctuation_may_differ():
    assert greedy_clusters(["a b c", "C, b a!", "a b"], similarity=1) == [[0, 1], [2]]


@pytest.mark.parametrize("similarity", [0, -1, 1.1, math.nan])
def test_a_similarity_out_of_range_is_refused(similarity):
    with pytest.raises(ConfigurationError):
        greedy_clusters(["a"], similarity=similarity)


def test_ten_thousand_texts_cluster_in_seconds():
    """As in a long run: many variants of some attacks, made of words as unequal as in language."""
    rng = random.Random(0)
    words = [f"word{rank}" for rank in range(5000)]
    weights = [1 / (rank + 1) for rank in range(5000)]
    attacks = [rng.choices(words, weights, k=12) for _ in range(2000)]
    said = [
        " ".join([*rng.choice(attacks), *rng.choices(words, weights, k=2)]) for _ in range(10_000)
    ]
    started = time.process_time()
    clusters = greedy_clusters(said)
    assert time.process_time() - started < 5
    assert 1000 < len(clusters) < 2500


def test_distinct_n_is_the_share_of_different_ngrams():
    assert distinct_n(["a b a b"], 1) == 2 / 4
    assert distinct_n(["a b a b"], 2) == 2 / 3  # ab ba ab
    assert distinct_n(["a b", "A, b!"], 2) == 1 / 2


def test_distinct_n_does_not_make_ngrams_across_texts():
    assert distinct_n(["a b", "c d"], 2) == 1


def test_distinct_n_of_nothing_is_missing():
    assert math.isnan(distinct_n([], 1))
    assert math.isnan(distinct_n(["one", ""], 2))


@given(texts, st.integers(1, 3))
def test_distinct_n_is_a_share_or_missing_and_saying_all_twice_halves_it(texts, n):
    once, twice = distinct_n(texts, n), distinct_n(texts * 2, n)
    if math.isnan(once):
        assert math.isnan(twice)
    else:
        assert 0 < once <= 1
        assert twice == pytest.approx(once / 2)


def test_ngrams_shorter_than_a_word_are_refused():
    with pytest.raises(ConfigurationError):
        distinct_n(["a"], 0)
