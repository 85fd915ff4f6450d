"""Every part of a reward on one conversation made by hand, its value derived on paper.

Two attacks were tried beside each other. Nats of words under the target: red 1, tree 3, sky 2, all
others 1; the attacker finds them half as unlikely, the baseline twice, in a slot three times. The
embedder counts red, tree and sky, so the attacks have a cosine of 1/2, and "red tree" is what they
are about.
"""

import math

import pytest
import torch

from astra_rl import Conversation, Exchange
from astra_rl.rewards import REWARDS, Format, Harm, Limit
from astra_rl.rewards.likelihood import AttackNLL
from astra_rl.testing import ScriptedModerator

BUNDLED_SCENARIOS = frozenset(REWARDS)  # before other tests make parts of their own known
NATS = {"red": -1.0, "tree": -3.0, "sky": -2.0}
FACTS = {"goal": "red tree", "example": "red tree", "response": "sure thing", "kind": "harmful"}
OPENING = Conversation("Hi", facts=FACTS)
LATER = Conversation("Hi", turns=["sky tree", "ok"], facts=FACTS)


def count(texts):
    return torch.tensor([[float(text.split().count(word)) for word in NATS] for text in texts])


def sigma(x):
    return 1 / (1 + math.exp(-x))


def harm_and_form():
    return {"part": Harm(), "when": Format("tree$")}


refusal, talk_of_trees = ScriptedModerator({"no": 1.0}), ScriptedModerator({"tree": 0.9})
GOLDEN = {
    "harm": ({}, (0.8, 0.1)),
    "attack_nll": ({}, ((1 + 3) / 2, (1 + 2) / 2)),
    "slot_nll": ({}, (3 * (1 + 3) / 2, 3 * (1 + 2) / 2)),
    "attack_probability": ({}, (math.exp(-4), math.exp(-3))),
    "min_k": ({"k": 1}, (-2 * 3, -2 * 2)),
    "kl": ({}, (2 * 4 - 0.5 * 4, 2 * 3 - 0.5 * 3)),
    "entropy": ({}, (0.5 * 4, 0.5 * 3)),
    "response_likelihood": ({}, (-1, -1)),
    "word_novelty": ({}, (1 - 1 / 3, 1 - 1 / 3)),  # one word of three in common
    "kind_novelty": ({}, (1, 1)),  # no success is known yet
    "named_novelty": ({}, (1, 1)),
    "self_bleu": ({"orders": [1, 2], "against": "siblings"}, (0.75, 0.75)),  # BLEU 1/2 and 0
    "embedding_novelty": ({"embedder": count, "nearest": 1, "against": "siblings"}, (0.5, 0.5)),
    # less the goal (1, 1, 0): nothing; (1/2, -1/2, 1) against the earlier (-1/2, 1/2, 1)
    "style_diversity": ({"embedder": count}, (0, 1 - 0.5 / 1.5)),
    "few_shot_similarity": ({"embedder": count}, (sigma(2.5), sigma(-2.5))),
    "on_topic": ({"embedder": count}, (1, 0.5)),
    "gibberish": ({"moderator": talk_of_trees}, (0.9, 0)),
    "format": ({"pattern": "tree$"}, (1, 0)),
    "extracted": ({}, (1, 1)),
    "length": ({}, (8, 7)),
    "brevity": ({"start": 0, "end": 16}, (0.75, 0.8267)),
    "sum": (lambda: {"weights": {Harm(): 1.0, AttackNLL(): -0.1}}, (0.8 - 0.2, 0.1 - 0.15)),
    "product": (lambda: {"factors": [Harm(), AttackNLL()]}, (0.8 * 2, 0.1 * 1.5)),
    "gate": (lambda: {**harm_and_form(), "at_least": 1, "otherwise": -3}, (0.8, -3)),
    "constraint": (  # a multiplier of 1, and an excess of -1/2 and 1/2
        lambda: {"part": Harm(), "limits": [Limit(Format("tree$"), at_least=0.5)]},
        ((0.8 + 0.5) / 2, (0.1 - 0.5) / 2),
    ),
    "rank": (lambda: {"part": Harm()}, (1, 0)),
    "standardized": (lambda: {"part": Harm()}, (sigma(0.8 / 1.1), sigma(0.1 / 1.1))),
    "threshold": (lambda: {"part": Harm()}, (1, 0)),
    "sigmoid": (lambda: {"part": Harm()}, (sigma(3), sigma(-4))),
    "clip": (lambda: {"part": Harm(), "low": 0.2, "high": 0.7}, (0.7, 0.2)),
    "affine": (lambda: {"part": Harm(), "scale": 2, "offset": 1}, (2.6, 1.2)),
    "ast": ({}, (-2 + 10, -1.5 - 0.4)),  # ten nats at most, so the bonus is 10
    "novel_failure": ({}, (0.8 * (1 - 0.5 / 3) - 0.1 * 4, 0.1 * (1 - 0.5 / 3) - 0.1 * 3)),
    # harmful, faithful and not refused; harmless, unfaithful and refused
    "general_sum_game": (
        {"role": "attacker", "refusal": refusal, "prompt_harm": talk_of_trees},
        (1 + 0.5 + 0.5, -1 - 0.5 - 0.5),
    ),
    "several_targets": ({"others": [lambda contexts: ["calm", "bad"]]}, (0.45, 0.45)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_its_value_is_the_one_derived_by_hand(name, make_models):
    options, expected = GOLDEN[name]
    part = REWARDS[name](**(options() if callable(options) else options))
    context = LATER if name == "style_diversity" else OPENING
    exchanges = [Exchange(context, "red tree", "bad"), Exchange(context, "red sky", "no")]
    models = make_models(ScriptedModerator({"bad": 0.8}, default=0.1), NATS)
    values, recorded = part.evaluate(models, exchanges)
    assert values == pytest.approx(expected, abs=1e-4)
    assert len(recorded) == 2
    assert all(recorded)  # each part is in the record by its name


def test_no_part_is_left_out():
    assert set(GOLDEN) >= BUNDLED_SCENARIOS
