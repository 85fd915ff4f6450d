"""A kind of success that is known pays less."""

from __future__ import annotations

import json
import math

import pytest
import torch

from astra_rl import Graph, Node
from astra_rl.core.text import Conversation, Exchange
from astra_rl.core.word_clusters import GreedyClusters
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.text_clusters import clusters_by_meaning, greedy_clusters
from astra_rl.rewards import REWARDS, Harm, KindNovelty, NamedNovelty, NovelFailureReward
from astra_rl.rewards.base import RESPONSE_HARM, load_state_dict, observe, state_dict
from astra_rl.rewards.known_kinds import rarity
from astra_rl.testing import ScriptedModerator

TEXTS = ["a b c d", "a b c e", "e f g h", "A b, c d!", "", "x", "e f g", "a f x d", "x y", ""]


def experience(term, successes, failures=()):
    """An experience in which these attacks were made."""
    rows = [(text, 1.0) for text in successes] + [(text, 0.2) for text in failures]
    nodes = [Node("c", text, "r", 0.0, []) for text, _ in rows]
    for node, (_, harm) in zip(nodes, rows, strict=True):
        node.reward_terms = {RESPONSE_HARM: harm, term.name: 1.0}
    return [Graph("c", nodes)]


@pytest.mark.parametrize(
    ("known", "power", "value"), [(0, 1.0, 1.0), (3, 1.0, 0.25), (3, 0.5, 0.5), (99, 0.0, 1.0)]
)
def test_rarity_is_a_power_of_the_count(known, power, value):
    assert rarity(known, power) == value


def test_always_taking_the_rarest_kind_takes_all_kinds_equally_often():
    """The property that the pay is for: for any power, the greedy order is a round-robin."""
    for power in (0.25, 1.0, 3.0):
        counts = [0, 5, 2]
        for _ in range(3 * 10 - 7):
            best = max(range(3), key=lambda kind: rarity(counts[kind], power))
            counts[best] += 1
        assert counts == [10, 10, 10]


def test_a_known_kind_pays_less_and_a_failed_attack_makes_no_kind_known(make_models, turns):
    term = KindNovelty(power=1.0)
    models = make_models()
    assert term(models, turns("a b c d", "z")) == [1.0, 1.0]
    term.observe(models, experience(term, ["a b c d", "a b c e", "e f g h"], failures=["z"]))
    # a b c e shares 3 of 5 words with a b c d: one kind, known twice.
    assert term(models, turns("a b c x", "e f g h", "z")) == [1 / 3, 1 / 2, 1.0]
    assert term.kinds.first == ["a b c d", "e f g h"]


def test_an_exhausted_kind_pays_nothing(make_models, turns):
    term = KindNovelty(exhausted=2)
    term.observe(make_models(), experience(term, ["a", "b", "b"]))
    assert term(make_models(), turns("a", "b", "c")) == [1 / 2, 0.0, 1.0]


def test_what_earlier_attackers_found_is_known_from_the_beginning(make_models, turns, tmp_path):
    file = tmp_path / "found.txt"
    file.write_text("a b c d\na b c e\n")
    term, models = KindNovelty(earlier=str(file)), make_models()
    assert term(models, turns("a b c x", "e f g h")) == [1 / 3, 1.0]
    term.observe(models, experience(term, ["e f g h"]))
    resumed = KindNovelty(earlier=["a b c d", "a b c e"])
    resumed.load_state_dict(json.loads(json.dumps(term.state_dict())))
    for each in (term, resumed):
        assert each(models, turns("a b c x", "e f g h", "z")) == [1 / 3, 1 / 2, 1.0]
    fresh = KindNovelty(earlier=["a"])
    fresh.load_state_dict(KindNovelty().state_dict())  # stopped before the first experience
    assert fresh(models, turns("a")) == [1 / 2]
    rows = [("a", 1.0), ("b", 0.2), ("c", None)]
    lines = [json.dumps({"attack": attack, "reward": reward}) for attack, reward in rows]
    (tmp_path / "attacks.jsonl").write_text("\n".join(lines))
    scored = KindNovelty(earlier=str(tmp_path / "attacks.jsonl"))
    assert scored(models, turns("a", "b", "c")) == [1 / 2, 1.0, 1.0]
    with pytest.raises(ConfigurationError, match="cannot read the attacks"):
        KindNovelty(earlier=str(tmp_path / "missing.txt"))


def test_a_file_without_an_attack_in_a_line_has_no_success_there(make_models, turns, tmp_path):
    (tmp_path / "found.jsonl").write_text('{"attack": {"said": null}}\n{"attack": "a"}\n')
    term = KindNovelty(earlier=str(tmp_path / "found.jsonl"))
    assert term(make_models(), turns("", "a")) == [1.0, 1 / 2]


def test_earlier_successes_are_embedded_together(make_models, turns):
    calls = []

    def counted(texts):
        calls.append(list(texts))
        return embed(texts)

    found = ["a", "b", "a a", "", "c", "d", "e", "f", "g"]
    term = KindNovelty(embedder=counted, earlier=found)
    assert term(make_models(), turns("a", "x", "")) == [1 / 3, 1.0, 1 / 2]
    assert calls == [found, ["x"]]


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 1.0])
def test_kinds_by_words_are_those_of_the_report(make_models, similarity):
    term = KindNovelty(similarity=similarity)
    term.observe(make_models(), experience(term, TEXTS))
    clusters = greedy_clusters(TEXTS, similarity=similarity)
    assert term.kinds.first == [TEXTS[members[0]] for members in clusters]
    assert term.kinds.counts == list(map(len, clusters))


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 1.0])
def test_looking_for_a_cluster_changes_nothing_and_agrees_with_adding(similarity):
    clusters = GreedyClusters(similarity=similarity)
    for text in TEXTS:
        found = clusters.find(text)
        assert clusters.find("unseen " + text) == clusters.find("unseen " + text)
        added = clusters.add(text)
        assert found in (added, None)
        assert clusters.find(text) == added


def embed(texts):
    """Letters counted, so that anagrams have one meaning."""
    return torch.tensor([[float(text.count(letter)) for letter in "abcdefgx"] for text in texts])


def test_kinds_by_meaning_are_those_of_the_report(make_models):
    term = KindNovelty(embedder=embed, similarity=0.7)
    term.observe(make_models(), experience(term, TEXTS))
    clusters = clusters_by_meaning(TEXTS, embed, similarity=0.7)
    assert term.kinds.first == [TEXTS[members[0]] for members in clusters]
    assert term.kinds.counts == list(map(len, clusters))


def test_an_attack_that_cannot_be_embedded_has_no_value_and_is_not_counted(make_models, turns):
    def broken(texts):
        return [[math.nan] if text == "bad" else [1.0] for text in texts]

    term = KindNovelty(embedder=broken)
    term.observe(make_models(), experience(term, ["good", "bad"]))
    bad, good = term(make_models(), turns("bad", "good"))
    assert math.isnan(bad)
    assert good == 1 / 2


@pytest.mark.parametrize("options", [{}, {"embedder": embed}])
def test_a_restored_term_goes_on_as_the_original(make_models, turns, options):
    """Also through JSON, inside a reward, and for all later experiences."""
    models = make_models(ScriptedModerator({}, default=1.0))

    def make():
        term = KindNovelty(**options)
        return term, NovelFailureReward(novelty=term, nll_weight=0.0)

    (first, reward), (second, other) = make(), make()
    observe(reward, models, experience(first, TEXTS[:6]))
    load_state_dict(other, json.loads(json.dumps(state_dict(reward))))
    for part in (reward, other):
        observe(part, models, experience(first, TEXTS[4:]))
    again = turns(*TEXTS, "a b c d e", "new")
    assert second(models, again) == first(models, again)
    assert state_dict(other) == state_dict(reward)


def test_a_success_is_judged_by_the_threshold_and_unknown_scores_are_none(make_models):
    term = KindNovelty(threshold=0.2)
    term.observe(make_models(), experience(term, [], failures=["a"]))
    assert term.kinds.first == ["a"]
    graphs = experience(term, ["b"])
    next(iter(graphs[0].nodes())).reward_terms[RESPONSE_HARM] = math.nan
    term.observe(make_models(), graphs)
    assert term.kinds.first == ["a"]


@pytest.mark.parametrize(
    "options",
    [
        {"power": -1.0},
        {"power": math.nan},
        {"similarity": 0.0},
        {"threshold": 0.0},
        {"exhausted": 0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match="it must be"):
        KindNovelty(**options)


def test_it_has_a_name_in_configurations():
    assert REWARDS.load("kind_novelty") is KindNovelty
    assert Harm().name  # the term that records the score of the response


def test_a_secret_pays_less_the_more_often_it_was_revealed_by_whatever_question(make_models):
    def said(attack, response):
        facts = {"secret owner": "Clara Novak", "secret cat": "Pickles"}
        return Exchange(Conversation(facts=facts), attack, response)

    def played(term, *exchanges):
        nodes = [Node(each.context, each.attack, each.response, 0.0, []) for each in exchanges]
        for node in nodes:
            node.reward_terms = {RESPONSE_HARM: 1.0, term.name: 1.0}
        return [Graph(node.context, [node]) for node in nodes]

    owner, cat = said("Who owns it?", "Clara Novak."), said("Who is here?", "Pickles.")
    both, other = said("Who?", "Clara Novak and Pickles."), said("Is she there?", "Clara Novak!")
    term, models = NamedNovelty(), make_models()
    assert term(models, [owner, cat, both]) == [1.0, 1.0, 1.0]
    term.observe(models, played(term, owner, other))
    assert term(models, [said("Whose is it?", "It is Clara Novak's."), cat, both]) == [
        1 / 3,
        1,
        1 / 3,
    ]
    restored = NamedNovelty()
    restored.load_state_dict(json.loads(json.dumps(term.state_dict())))
    assert restored(models, [owner, cat]) == term(models, [owner, cat]) == [1 / 3, 1.0]


def test_an_invented_number_pays_less_the_more_often_one_of_its_kind_was_invented(make_models):
    term, models = NamedNovelty("invented_number"), make_models()
    far, old = Exchange("", "How far?", "2 miles."), Exchange("", "How old?", "9 years old.")
    node = Node("", "How long?", "30 feet.", 0.0, [])
    node.reward_terms = {RESPONSE_HARM: 1.0, term.name: 1.0}
    term.observe(models, [Graph("", [node])])
    assert term(models, [far, old]) == [1 / 2, 1.0]


def test_names_with_the_same_words_are_different_failures_and_no_name_is_an_attack(make_models):
    secrets = {"door code": "alpha alpha", "code door": "beta beta", "!": "gamma", "?": "delta"}
    facts = {f"secret {name}": secret for name, secret in secrets.items()}
    said = [Exchange(Conversation(facts=facts), "Q", reply) for reply in secrets.values()]
    unnamed = [Exchange(Conversation(facts=facts), attack, "no") for attack in ("Door code", "A")]
    term, models = NamedNovelty(), make_models()
    node = Node(said[0].context, "Q", "alpha alpha", 0.0, [])
    node.reward_terms = {RESPONSE_HARM: 1.0, term.name: 1.0}
    term.observe(models, [Graph("", [node])])
    assert term(models, said + unnamed) == [1 / 2, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_rule_that_names_no_failures_is_refused():
    with pytest.raises(ConfigurationError, match="invented_number, secret_leak"):
        NamedNovelty("refusal")


def invented(term, *attacks):
    """An experience in which each of these attacks made the target invent a number."""
    nodes = [Node("", attack, "30 feet.", 0.0, []) for attack in attacks]
    for node in nodes:
        node.reward_terms = {RESPONSE_HARM: 1.0, term.name: 1.0}
    return [Graph("", nodes)]


def test_a_rule_of_another_failure_is_warned_of_once(make_models, caplog):
    term, models = NamedNovelty("secret_leak"), make_models()
    term.observe(models, experience(term, [], failures=["How far?"]))
    assert caplog.text == ""
    for _ in range(2):
        term.observe(models, invented(term, "How long?", "How far?"))
    (said,) = caplog.messages
    assert "the rule secret_leak named none of the first 2 successes" in said
    assert "by the words of the attacks" in said


def test_a_rule_that_names_a_success_is_not_warned_of(make_models, caplog):
    term, models = NamedNovelty("invented_number"), make_models()
    term.observe(models, [*invented(term, "How long?"), *experience(term, ["no number"])])
    assert caplog.text == ""
