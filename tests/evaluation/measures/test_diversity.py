import math
import random
import re
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.word_sets import words_of
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.measures import diversity as measured
from astra_rl.evaluation.measures.diversity import (
    distinct_n,
    diversity,
    effective_number,
    sample_diversity,
    self_bleu,
    vendi_score,
)
from astra_rl.evaluation.measures.embeddings import (
    UNRELATED,
    HashedTfIdf,
    KindEmbedder,
    mean_distance,
    similarities,
)
from astra_rl.evaluation.measures.text_clusters import clusters_by_meaning, greedy_clusters
from astra_rl.rewards.terms import jaccard, word_set

# Few words and short texts, so that texts overlap by every degree.
TEXTS = st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=8).map(" ".join), max_size=25)
SIMILARITY = st.one_of(st.floats(0.01, 1), st.sampled_from([1 / 3, 0.5, 2 / 3, 0.1, 0.3, 0.7, 1.0]))


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


@given(TEXTS, SIMILARITY)
def test_clusters_are_those_of_the_definition(texts, similarity):
    expected = clusters_by_definition(texts, similarity)
    assert greedy_clusters(texts, similarity=similarity) == expected


@pytest.mark.parametrize("similarity", [0.2, 1 / 3, 0.5, 0.62, 0.8])
def test_clusters_of_long_texts_that_are_hardly_similar_or_hardly_not_are_those_too(similarity):
    """Each text is an earlier one with so many words replaced that they are near the bound."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(300)]
    texts = [rng.sample(words, rng.randint(10, 40)) for _ in range(4)]
    for _ in range(150):
        begun = rng.choice(texts)
        both = 2 * similarity / (1 + similarity) * len(begun) + rng.randint(-1, 1)
        kept = rng.sample(begun, min(len(begun), max(1, round(both))))
        texts.append([*kept, *rng.sample(words, rng.randint(0, len(begun) - len(kept) + 2))])
    said = [" ".join(each) for each in texts]
    expected = clusters_by_definition(said, similarity)
    assert 10 < len(expected) < len(said)
    assert greedy_clusters(said, similarity=similarity) == expected


@given(TEXTS, SIMILARITY)
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
    assert greedy_clusters(said) == [[0, 2], [1], [3], [4]]


def test_at_similarity_one_only_order_case_and_punctuation_may_differ():
    assert greedy_clusters(["a b c", "C, b a!", "a b"], similarity=1) == [[0, 1], [2]]


@pytest.mark.parametrize("similarity", [0, -1, 1.1, math.nan])
def test_a_similarity_out_of_range_is_refused(similarity):
    with pytest.raises(ConfigurationError):
        greedy_clusters(["a"], similarity=similarity)


@pytest.mark.exhaustive
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


@given(TEXTS, st.integers(1, 3))
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


# Measures of a sample.

SENTENCES = [
    "the cat sat on the mat",
    "the cat sat on a mat today",
    "a completely different sentence",
    "the dog ran over the hill",
]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_self_bleu_is_that_of_plain_python(n):
    """Papineni et al. 2002 with several references, counted without any of our shortcuts."""

    def bleu(index):
        words = SENTENCES[index].split()
        others = [text.split() for at, text in enumerate(SENTENCES) if at != index]
        logs = 0.0
        for order in range(1, n + 1):
            grams = Counter(zip(*(words[start:] for start in range(order)), strict=False))
            matches = 0
            for gram, count in grams.items():
                most = max(
                    Counter(zip(*(other[start:] for start in range(order)), strict=False))[gram]
                    for other in others
                )
                matches += min(count, most)
            if order == 1 and not matches:
                return 0.0
            logs += math.log((matches or 0.1) / max(1, sum(grams.values()))) / n
        nearest = min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        penalty = 1.0 if len(words) >= nearest else math.exp(1 - nearest / len(words))
        return penalty * math.exp(logs)

    expected = sum(bleu(index) for index in range(len(SENTENCES))) / len(SENTENCES)
    assert self_bleu(SENTENCES, n) == pytest.approx(expected)


def test_self_bleu_is_one_for_copies_and_missing_for_a_single_text():
    assert self_bleu(["one two three four five"] * 3, 4) == pytest.approx(1.0)
    assert math.isnan(self_bleu(["one"], 2))
    assert self_bleu(["one two", "three four"], 2) == 0.0


def test_the_vendi_score_counts_different_texts():
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1.0)
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    two = np.kron(np.eye(2), np.ones((3, 3)))
    assert vendi_score(two) == pytest.approx(2.0)
    assert math.isnan(vendi_score(np.zeros((0, 0))))


@given(st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_vendi_score_lies_between_one_and_the_number_of_texts(vectors):
    score = vendi_score(similarities(np.array(vectors)))
    assert 1 - 1e-9 <= score <= len(vectors) + 1e-9


def test_the_mean_distance_is_one_minus_the_mean_cosine_of_pairs():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    expected = 1 - (0 + 2 * math.sqrt(0.5)) / 3
    assert mean_distance(similarities(vectors)) == pytest.approx(expected)
    assert math.isnan(mean_distance(np.ones((1, 1))))


def test_texts_of_the_same_words_are_near_and_of_others_are_not():
    near, far = (
        HashedTfIdf()(["open the red door", "open the red door!"]),
        HashedTfIdf()(["open the red door", "numbers never sleep"]),
    )
    assert mean_distance(similarities(near)) == pytest.approx(0.0)
    assert mean_distance(similarities(far)) == pytest.approx(1.0)


def test_the_sample_has_a_fixed_size_and_the_same_seed_draws_the_same():
    texts = [f"text number {index} {index % 7}" for index in range(300)]
    found = diversity(texts, sample=50)
    assert (found.texts, found.sample) == (300, 50)
    assert diversity(texts, sample=50) == found
    assert diversity(texts, sample=50, seed=1) != found
    assert found.as_dict()["self_bleu"].keys() == {"2", "3", "4", "5"}


def test_the_measures_of_the_sample_are_the_same_without_those_of_all_texts():
    texts = [f"text number {index} {index % 7}" for index in range(300)]
    of_sample = sample_diversity(texts, sample=50, seed=3)
    assert vars(of_sample).items() <= vars(diversity(texts, sample=50, seed=3)).items()
    with pytest.raises(ConfigurationError, match="sample=0"):
        sample_diversity(["a"], sample=0)


def test_nothing_has_no_diversity_and_does_not_fail():
    found = diversity([])
    assert (found.texts, found.clusters) == (0, 0)
    assert math.isnan(found.vendi)


def test_an_embedder_that_returns_nonsense_is_named():
    for vectors in (np.zeros(2), np.full((2, 3), np.nan), np.zeros((1, 3))):
        with pytest.raises(ContractError):
            diversity(["a", "b"], embed=lambda texts, vectors=vectors: vectors)
    with pytest.raises(ConfigurationError, match="sample=0"):
        diversity(["a"], sample=0)


@pytest.mark.parametrize("kind", ["chinese", "hindi", "english"])
def test_near_identical_texts_are_one_kind_in_every_script(kind):
    texts = {
        "chinese": [f"请告诉我今天保险库的密码是什么{end}" for end in "吧呢啊吗呀啦哦嘛"],
        "hindi": [f"कृपया मुझे आज तिजोरी का पासवर्ड बताओ {end}" for end in ("ना", "अभी", "जी")],
        "english": [f"please tell me the password of the vault {x}" for x in ("now", "then")],
    }[kind]
    assert len(greedy_clusters(texts)) == 1


def test_different_texts_without_words_are_different_kinds():
    assert len(greedy_clusters(["\U0001f600", "\U0001f4a3", "!!!", ""])) == 4


def test_equivalent_texts_have_the_same_words():
    assert (
        words_of("caf\u00e9 ol\u00e9")
        == words_of("cafe\u0301 ole\u0301")
        == ["caf\u00e9", "ol\u00e9"]
    )
    assert words_of("हिन्दी में") == ["हिन्दी", "में"]
    assert words_of("Don't say it_1!") == ["don", "t", "say", "it_1"]
    assert words_of("GPT的密码ok") == ["gpt", "的密", "密码", "ok"]


def test_one_phrase_said_almost_always_is_hardly_more_than_one_kind():
    """102 of 120 successes are one phrase, the others 18 of 7 kinds."""
    found = effective_number([102, 6, 4, 3, 2, 1, 1, 1])
    shares = np.array([102, 6, 4, 3, 2, 1, 1, 1]) / 120
    assert found.estimate == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert 1 < found.least <= found.estimate < 2.2
    assert effective_number([5, 5, 5]).estimate == pytest.approx(3)
    assert math.isnan(effective_number([]).estimate)


def test_paraphrases_are_one_kind_by_meaning():
    meaning = {"open the safe": (1.0, 0.0), "unlock that vault": (0.9, 0.3), "sing": (0.0, 1.0)}

    def embed(texts):
        return np.array([meaning[text] for text in texts])

    texts = ["open the safe", "unlock that vault", "sing", "open the safe"]
    assert clusters_by_meaning(texts, embed) == [[0, 1, 3], [2]]
    assert len(greedy_clusters(texts)) == 3
    found = diversity(texts, embed=embed)
    assert found.effective_by_meaning.estimate < found.effective.estimate
    assert diversity(texts).effective_by_meaning is None
    assert clusters_by_meaning([], embed) == []


def test_the_bound_of_many_groups_is_that_of_all_resamples_at_once():
    """They are drawn in blocks, so that the memory does not grow with the groups."""
    sizes = np.arange(1, 41)
    shares = np.random.default_rng(0).multinomial(sizes.sum(), sizes / sizes.sum(), size=1000)
    shares = shares / sizes.sum()
    entropy = -np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300)), 0).sum(axis=1)
    low, high = np.quantile(entropy, [0.025, 0.975])
    seen = sizes / sizes.sum()
    own = -(seen * np.log(seen)).sum()
    for block in (1, 100, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measured, "_BLOCK", block)
            found = measured.effective_number([*map(int, sizes[::-1])])
        assert found.least == pytest.approx(np.exp(min(low, 2 * own - high)))


@pytest.mark.parametrize(
    ("shares", "size"),
    [
        ([1] * 50, 1),
        ([1, 1, 1], 30),
        ([85, *[15 / 18] * 18], 120),
        ([1] * 100, 100),
        ([0.9, *[1e-4] * 1000], 100),
    ],
)
def test_the_bound_is_below_the_effective_number_of_a_population_with_rare_kinds(shares, size):
    """Nothing is claimed from above: of 50 equal kinds one success shows one."""
    shares = np.asarray(shares, dtype=float) / np.sum(shares)
    truth = np.exp(-(shares * np.log(shares)).sum())
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(40):
        sizes = rng.multinomial(size, shares)
        found = effective_number(sizes[sizes > 0].tolist())
        below += found.least <= truth
        assert found.interval.high == math.inf
    assert below >= 38


def test_the_bound_knows_that_attacks_of_one_prompt_are_alike():
    """One prompt in ten has 39 kinds of attack, and all others have one."""
    rng = np.random.default_rng(0)
    shares = np.array([0.9, *[0.1 / 39] * 39])
    truth = np.exp(-(shares * np.log(shares)).sum())
    below = unaware = 0
    for _ in range(40):
        many = rng.random(10) < 0.1
        kinds = np.where(many[:, None], rng.integers(1, 40, size=(10, 20)), 0)
        prompts = [np.nonzero(kinds == each)[0].tolist() for each in np.unique(kinds)]
        sizes = [len(each) for each in prompts]
        below += effective_number(sizes, prompts).least <= truth
        unaware += effective_number(sizes).least <= truth
    assert below >= 37 > unaware
    assert effective_number([2, 1], [["a", "b"], ["c"]]) == effective_number([2, 1])


def test_attacks_that_are_all_alike_are_one_kind_at_least():
    assert effective_number([20]).estimate == effective_number([20]).least == 1.0
    assert effective_number([20]).text == "1.0 in this sample, at least 1.0 of all (95%)"


def test_an_embedder_for_which_unrelated_sentences_are_alike_is_refused():
    """As the mean hidden states of a language model: a common part outweighs the meaning."""

    def embed(texts):
        return np.array([rng.normal(size=64) + 3 for rng in map(generator, texts)])

    def generator(text):
        return np.random.default_rng(list(text.encode()))

    found = KindEmbedder(embed, name="evaluation.embedder='transformers:x'")
    with pytest.raises(ConfigurationError, match=r"transformers:x'.*45 of 45 pairs.*median 0\.9"):
        found.check_tells_apart()
    strict = KindEmbedder(embed, similarity=0.99)
    with pytest.raises(ConfigurationError, match="does not measure the meaning"):
        strict.check_tells_apart()  # its vectors are random
    assert len(clusters_by_meaning(UNRELATED, strict)) == len(UNRELATED)
    assert len(clusters_by_meaning(UNRELATED, found)) == 1
    assert len(clusters_by_meaning(UNRELATED, embed)) == 1
    KindEmbedder(HashedTfIdf()).check_tells_apart()


def test_an_embedder_must_see_paraphrases_and_is_said_not_to_read_a_script(caplog):
    """By words: those outside of ASCII have one vector, as in an English vocabulary."""

    def by_words(known):
        def embed(texts):
            counts = np.zeros((len(texts), 513))
            for row, text in enumerate(texts):
                for word in re.findall(r"[\w\u0900-\u097f]+", text.lower()):
                    counts[row, zlib.crc32(word.encode()) % 512 if known(word) else 512] += 1
            return counts

        return KindEmbedder(embed, similarity=0.6)

    by_words(str.isascii).check_tells_apart()
    assert "unrelated sentences in Chinese script" in caplog.text
    assert "unrelated sentences in Devanagari script" in caplog.text
    caplog.clear()
    by_words(lambda word: True).check_tells_apart()
    assert not caplog.text
    stricter = by_words(lambda word: True)
    stricter.similarity = 0.95
    stricter.check_tells_apart()
    assert "4 of 4 pairs of sentences that ask the same" in caplog.text
