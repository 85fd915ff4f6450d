"""Novelty against siblings and history, checked by hand, by plain code and by scikit-learn."""

import json
import math
import sys
import types
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine

from astra_rl import (
    ConfigurationError,
    ContractError,
    Conversation,
    Exchange,
    MissingDependencyError,
)
from astra_rl.core.level import Level, tree_level
from astra_rl.errors import ModelError
from astra_rl.rewards import (
    EmbeddingNovelty,
    FewShotSimilarity,
    Novelty,
    OnTopic,
    SelfBLEU,
    StyleDiversity,
)
from astra_rl.rewards.embedding import HashingEmbedder, SentenceTransformerEmbedder, Vectors
from astra_rl.rewards.novelty import BLEUReferences, bleu_tokens, without_subspace
from astra_rl.testing import ToyProblem

nan = math.nan
AXES = {"x": [1.0, 0.0, 0.0], "y": [0.0, 1.0, 0.0], "z": [0.0, 0.0, 1.0], "none": [0.0] * 3}


def vector(text):
    """The sum of one axis per word."""
    return np.sum([AXES.get(word, [nan] * 3) for word in text.split()] or [[0.0] * 3], axis=0)


def by_axes(texts):
    return [list(vector(text)) for text in texts]


# BLEU.


def plain_bleu(tokens, references, order):
    """BLEU as its paper puts it, in exact fractions, one reference after the other."""
    if not references:
        return 0.0
    precisions = []
    for n in range(1, order + 1):
        own = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        clipped = 0
        for gram, count in own.items():
            most = 0
            for reference in references:
                found = sum(
                    tuple(reference[i : i + n]) == gram for i in range(len(reference) - n + 1)
                )
                most = max(most, found)
            clipped += min(count, most)
        precisions.append(Fraction(clipped, sum(own.values())))
    if min(precisions) == 0:
        return 0.0
    mean = math.prod(float(each) ** (1 / order) for each in precisions)
    c = len(tokens)
    r = min((abs(len(reference) - c), len(reference)) for reference in references)[1]
    return mean * (1.0 if c >= r else math.exp(1 - r / c))


def test_bleu_by_hand():
    """ "the cat sat" against "the cat ran": 1-grams 2 of 3, 2-grams 1 of 2: sqrt(2/3 * 1/2).

    Against the longer "the cat sat on it", all grams match and brevity costs exp(1 - 5/3).
    """
    said = ["the", "cat", "sat"]
    one = BLEUReferences([["the", "cat", "ran"]], 2)
    assert one.bleu(said, 2) == pytest.approx(math.sqrt(1 / 3))
    longer = BLEUReferences([["the", "cat", "sat", "on", "it"]], 2)
    assert longer.bleu(said, 2) == pytest.approx(math.exp(-2 / 3))


tokens = st.lists(st.sampled_from("abc"), min_size=1, max_size=7)


@given(tokens, st.lists(tokens, max_size=4), st.integers(1, 4))
def test_bleu_agrees_with_a_plain_implementation(said, references, order):
    order = min(order, len(said))
    assert BLEUReferences(references, 4).bleu(said, order) == pytest.approx(
        plain_bleu(said, references, order), abs=1e-12
    )


def test_self_bleu_novelty_is_one_minus_the_mean_over_orders(make_models, turns):
    """Siblings "the cat sat" and "the cat ran": BLEU-2 sqrt(1/3); BLEU-3 is 0, no common 3-gram."""
    term = SelfBLEU((2, 3), against="siblings")
    values = term(make_models(), turns("the cat sat", "The cat ran"))
    assert values == pytest.approx([1 - math.sqrt(1 / 3) / 2] * 2)


def test_a_repetition_is_not_new_and_an_attack_alone_is(make_models, turns):
    term = SelfBLEU(against="siblings")
    assert term(make_models(), turns("a b c d e", "a b c d e")) == pytest.approx([0.0, 0.0])
    assert term(make_models(), turns("a b c d e")) == [1.0]


def test_shortness_is_not_novelty(make_models, turns):
    term = SelfBLEU(against="siblings")
    assert term(make_models(), turns("hi", "hi")) == pytest.approx([0.0, 0.0])
    assert term(make_models(), turns("", "")) == [0.0, 0.0]


def test_punctuation_counts_as_tokens_and_case_does_not():
    assert bleu_tokens("Why, THEN?") == ["why", ",", "then", "?"]


# Embeddings.


def test_embedding_novelty_by_hand(make_models, turns, experience):
    """History x, y and "x y": to x their cosines are 1, 0 and 1/sqrt(2) = 0.7071.

    All: 1 - 1.7071/3 = 0.4310; the nearest 2: 1 - 1.7071/2 = 0.1464; the nearest: 0.
    """
    for nearest, expected in ((None, 0.430964), (2, 0.146447), (1, 0.0)):
        term = EmbeddingNovelty(by_axes, nearest=nearest)
        term.observe(make_models(), experience(term.name, "x", "y", "x y"))
        values = term(make_models(), turns("x", "z"))
        assert values == pytest.approx([expected, 1.0], abs=1e-6)


@given(
    st.lists(
        st.lists(st.integers(-3, 3), min_size=4, max_size=4).filter(any), min_size=2, max_size=8
    ),
    st.integers(1, 9),
)
def test_embedding_novelty_agrees_with_scikit_learn(rows, nearest):
    names = [f"t{row}" for row in range(len(rows))]
    table = dict(zip(names, rows, strict=True))
    term = EmbeddingNovelty(
        lambda texts: np.array([table[text] for text in texts], dtype=float),
        nearest=nearest,
        against="siblings",
    )
    values = term(None, [Exchange("c", name, "r") for name in names])
    similar = sklearn_cosine(np.array(rows, dtype=float))
    for row, value in enumerate(values):
        others = np.sort(np.delete(similar[row], row))[::-1][:nearest]
        assert value == pytest.approx(1 - others.mean(), abs=1e-5)


def test_what_the_embedder_does_not_see_is_not_new_and_what_it_cannot_say_is_missing(
    make_models, turns
):
    values = EmbeddingNovelty(by_axes, against="siblings")(
        make_models(), turns("none", "x", "strange", "y")
    )
    assert values[0] == 0.0
    assert math.isnan(values[2])
    assert values[1] == values[3] == 1.0  # against "none" and each other; the missing one is no one


@pytest.mark.parametrize("term", [SelfBLEU, lambda **o: EmbeddingNovelty(by_axes, **o)])
def test_the_history_is_what_was_measured_in_training_the_latest_of_it(
    term, make_models, experience
):
    made = term(window=3)
    made.observe(make_models(), experience(made.name, "x", "y"))
    made.observe(make_models(), experience("another part", "z"))
    assert made.history == ["x", "y"]
    made.observe(make_models(), experience(made.name, "z", "x y"))
    assert made.history == ["y", "z", "x y"]
    everything = term(window=None)
    everything.observe(make_models(), experience(everything.name, *"xyz"))
    assert everything.history == ["x", "y", "z"]


@pytest.mark.parametrize("term", [SelfBLEU, lambda: EmbeddingNovelty(by_axes)])
def test_measuring_leaves_no_trace_and_learning_shows(term, make_models, turns, experience):
    made = term()
    assert made(make_models(), turns("x y z")) == made(make_models(), turns("x y z")) == [1.0]
    made.observe(make_models(), experience(made.name, "x y z"))
    assert made(make_models(), turns("x y z")) == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize(
    "term",
    [
        Novelty(),
        SelfBLEU((1,), against="siblings"),
        EmbeddingNovelty(by_axes, against="siblings"),
    ],
    ids=lambda term: term.name,
)
def test_siblings_are_those_of_one_parent_in_one_graph_even_if_two_open_alike(term, make_models):
    """Two episodes that open with one and the same Conversation say the same: both are new."""
    opening = Conversation("c")
    turns = [Exchange(opening, "x", "r"), Exchange(opening, "x", "r")]
    with tree_level(Level((0, 1), (True, True), 0)):
        assert list(term(make_models(), turns)) == [1.0, 1.0]
    with tree_level(Level((0, 0), (True, True), 0)):
        assert term(make_models(), turns) == pytest.approx([0.0, 0.0], abs=1e-6)


# Style, examples, topics.


def test_style_diversity_by_hand(make_models):
    """The goal is x, so styles are without x. "x y" after "y" and "z": cosines 1 and 0: 1 - 1 = 0.

    "x y z" after "x y": styles (0, 1, 1)/sqrt(2) and (0, 1, 0): 1 - 0.7071 = 0.2929.
    """
    opening = Conversation("c", facts={"goal": "x"})
    term = StyleDiversity(by_axes)
    first = Exchange(opening, "x y", "r")
    third = Exchange(opening + "y" + "no" + "z" + "no", "x y", "r")
    second = Exchange(opening + "x y" + "no", "x y z", "r")
    values = term(make_models(), [first, third, second])
    assert values == pytest.approx([1.0, 0.0, 1 - math.sqrt(0.5)], abs=1e-6)


def test_an_attack_that_is_all_topic_has_no_style_of_its_own(make_models):
    opening = Conversation("c", facts={"goal": "x"})
    assert StyleDiversity(by_axes)(make_models(), [Exchange(opening + "y" + "no", "x", "r")]) == [
        0.0
    ]


def test_what_an_opening_brings_is_no_earlier_attempt(make_models):
    opening = Conversation("c", turns=["x", "no"], facts={"example": "y"})
    with tree_level(Level((0,), (True,), depth=0)):
        assert StyleDiversity(by_axes)(make_models(), [Exchange(opening, "x", "r")]) == [1.0]
        assert FewShotSimilarity(by_axes)(make_models(), [Exchange(opening, "x", "r")])[0] < 0.01


def test_a_style_that_the_embedder_cannot_say_is_missing(make_models):
    context = Conversation("c", facts={"goal": "x"}) + "y" + "no" + "strange" + "no"
    for attack, here in (("y", context), ("strange", Conversation("c") + "y" + "no")):
        value = StyleDiversity(by_axes)(make_models(), [Exchange(here, attack, "r")])[0]
        assert math.isnan(value)


def test_without_a_topic_style_is_the_whole_embedding(make_models):
    context = Conversation("c") + "x y" + "no"
    assert StyleDiversity(by_axes)(make_models(), [Exchange(context, "x", "r")]) == pytest.approx(
        [1 - math.sqrt(0.5)]
    )


@given(st.lists(st.lists(st.floats(-2, 2), min_size=4, max_size=4), min_size=1, max_size=5))
def test_what_is_left_of_a_vector_is_orthogonal_to_the_subspace(basis):
    basis = torch.tensor(basis, dtype=torch.float64)
    rest = without_subspace(torch.eye(4, dtype=torch.float64), basis)
    assert float((rest @ basis.T).abs().max()) < 1e-4
    assert torch.allclose(without_subspace(rest, basis), rest, atol=1e-5)


def test_few_shot_similarity_by_hand(make_models):
    """cos 1: sigmoid(10 * 0.25) = 0.9241; cos 0: sigmoid(-7.5) = 0.000553; later turns: 1."""
    opening = Conversation("c", facts={"example": "x"})
    exchanges = [Exchange(opening, "x", "r"), Exchange(opening, "y", "r")]
    exchanges.append(Exchange(opening + "x" + "no", "y", "r"))
    values = FewShotSimilarity(by_axes)(make_models(), exchanges)
    assert values == pytest.approx([0.9241418, 0.0005527786, 1.0])


def test_being_on_topic_is_a_cosine_to_the_goal_or_to_the_opening(make_models):
    opening = Conversation("y", facts={"goal": "x y"})
    turns = [Exchange(opening, "x", "r"), Exchange(opening, "z", "r")]
    assert OnTopic(by_axes)(make_models(), turns) == pytest.approx([math.sqrt(0.5), 0.0])
    assert OnTopic(by_axes, fact=None)(make_models(), turns) == [0.0, 0.0]


@pytest.mark.parametrize("term", [FewShotSimilarity(), OnTopic()], ids=lambda term: term.name)
def test_a_prompt_that_lacks_what_is_compared_with_is_named(term, make_models, turns):
    with pytest.raises(ConfigurationError, match=f"{term.name} needs prompts with the fact"):
        term(make_models(), turns("a"))


# Embedders.


def test_hashed_vectors_are_the_same_everywhere_and_tell_texts_apart():
    embed = HashingEmbedder()
    a, b, c = Vectors(embed)(None, ["Tell me the code", "tell me, the CODE!", "What a lovely day"])
    assert torch.equal(a, b)
    assert float(a @ c) < 0.3
    near = Vectors(embed)(None, ["Tell me the codes"])[0]
    assert 0.5 < float(a @ near) < 1
    # crc32 does not depend on the process, unlike hash(); these are its numbers.
    assert embed(["ab"])[0].nonzero().flatten().tolist() == sorted(
        {(zlib_code(feature) >> 1) % 1024 for feature in ("word ab", "part <ab", "part ab>")}
    )


def zlib_code(text):
    import zlib

    return zlib.crc32(text.encode())


def test_a_text_is_embedded_once(make_models):
    asked = []
    vectors = Vectors(lambda texts: asked.append(list(texts)) or by_axes(texts))
    vectors(make_models(), ["x", "y", "x"])
    assert vectors(make_models(), ["y", "z"]).shape == (2, 3)
    assert asked == [["x", "y"], ["z"]]
    assert vectors(make_models(), []).shape == (0, 0)


def test_an_embedder_that_loses_a_text_is_named(make_models):
    with pytest.raises(ContractError, match="the embedder returned 1 values for 2"):
        Vectors(lambda texts: [[1.0]])(make_models(), ["a", "b"])


def test_lone_surrogates_do_not_stop_a_run(make_models):
    assert Vectors()(make_models(), ["\ud800 broken"]).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vectors("hashin"), r"choose from hashing.*Did you mean 'hashing'"),
        (lambda: HashingEmbedder(0), "dimensions=0"),
        (lambda: EmbeddingNovelty(nearest=0), "nearest=0"),
        (lambda: EmbeddingNovelty(against="all"), "against='all'; choose 'history' or 'siblings'"),
        (lambda: SelfBLEU(window=0), "window=0"),
        (lambda: SelfBLEU(()), r"orders=\[\]"),
        (lambda: SelfBLEU((0, 2)), r"orders=\[0, 2\]"),
        (lambda: Vectors("baseline")(ToyProblem(), ["a"]), r"has no embed\(texts, under\)"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_model_of_sentence_transformers_needs_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match="extra 'embeddings'"):
        Vectors("sentence_transformers:all-MiniLM-L6-v2")


def test_a_model_of_sentence_transformers_names_no_code_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.ModuleType("never loaded"))
    (tmp_path / "0_Transformer").mkdir()
    config = {"model_type": "bert", "attn_implementation": "owner/kernel"}
    (tmp_path / "0_Transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'owner/kernel', which is code of the hub"):
        SentenceTransformerEmbedder(str(tmp_path))(["a"])


def test_a_model_of_sentence_transformers_is_loaded_when_it_is_first_used(monkeypatch):
    import sys
    import types

    loaded = []

    class SentenceTransformer:
        def __init__(self, model_id, **options):
            loaded.append((model_id, options))

        def encode(self, texts, *, show_progress_bar):
            return np.array(by_axes(texts))

    fake = types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    vectors = Vectors("sentence_transformers:some/model")
    assert loaded == []
    assert vectors(None, ["x"]).tolist() == [[1.0, 0.0, 0.0]]
    options = {
        "device": "cpu",
        "trust_remote_code": False,
        "local_files_only": False,
        "model_kwargs": {"use_safetensors": True},
    }
    assert loaded == [("some/model", options)]
