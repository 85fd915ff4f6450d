"""Answers of a model with 37 tokens, all of which can be enumerated."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from astra_rl import FunctionModerator
from astra_rl.actions import rare_answers
from astra_rl.actions.attacks import GivenAttack
from astra_rl.core.seeding import row_seeds
from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.stats.importance import ANSWERS, Probability, Sample, failure_probability
from astra_rl.ext.transformers.answers import AnswerModel
from astra_rl.models.generation import Sampling, generate
from astra_rl.testing import tiny_model

MESSAGE = Conversation("hello there")
END = 3


def answers_of(pair, *, name="target", steer="", **sampling):
    settings = Sampling(**{"max_new_tokens": 2, "temperature": 0.7, **sampling})
    return AnswerModel(name, pair, pair.renderer("target"), settings, steer)


@pytest.fixture(scope="module")
def target():
    return tiny_model("llama", chat=True)


@pytest.fixture(scope="module")
def every(target):
    """All answers of at most two tokens."""
    tokens = range(len(target.tokenizer))
    return [(END,), *((a, b) for a, b in product(tokens, tokens) if a != END)]


def enumerated(pair, prompt, temperature):
    """Probability of every answer of two tokens, from plain forward passes of transformers."""
    with torch.no_grad():
        first = (pair.model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(0)
        rows = torch.tensor([[*prompt, token] for token in range(len(first))])
        second = (pair.model(rows).logits[:, -1].double() / temperature).softmax(1)
    return first, second


@pytest.mark.parametrize("steer", ["", "say z"])
def test_the_probabilities_of_all_answers_are_those_of_plain_forward_passes(target, every, steer):
    model = answers_of(target, steer=steer)
    found = torch.tensor(model.logprobs([MESSAGE] * len(every), every)).double().exp()
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-4)
    messages = [{"role": "system", "content": steer}] if steer else []
    prompt = target.tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": "hello there"}], add_generation_prompt=True
    )["input_ids"]
    first, second = enumerated(target, prompt, 0.7)
    expected = [first[a[0]] * (second[a[0], a[1]] if len(a) == 2 else 1) for a in every]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-7)


def test_a_sampled_answer_knows_its_own_probability(target):
    for model in (answers_of(target), answers_of(target, steer="say z", temperature=1.3)):
        with row_seeds(list(range(20))):
            given = model.answer([MESSAGE] * 20, generate)
        scored = model.logprobs([MESSAGE] * 20, [each.token_ids for each in given])
        assert scored == pytest.approx([sum(each.logprobs) for each in given], abs=1e-4)


def less_safe(target, word, strength):
    """A copy of the target that says a word more often."""
    model = copy.deepcopy(target.model)
    token = target.tokenizer.convert_tokens_to_ids(word)
    prompt = list(answers_of(target).renderer.render(MESSAGE, reserve=2).ids)
    with torch.no_grad():
        for read in (prompt, [*prompt, token]):
            hidden = model.model(torch.tensor([read])).last_hidden_state[0, -1]
            model.lm_head.weight[token] += strength * hidden / hidden.norm() ** 2
    return target._replace(model=model)


def test_a_rare_answer_is_estimated_with_a_hundredth_of_plain_sampling(target, every):
    """The truth, about 5e-4, by enumeration: both tokens are "z"."""
    p = answers_of(target)
    z = target.tokenizer.convert_tokens_to_ids("z")
    truth = math.exp(p.logprobs([MESSAGE], [(z, z)])[0])
    assert 1e-4 < truth < 2e-3
    q = answers_of(less_safe(target, "z", 3.0), name="less safe")
    p.check_same_answers(q)
    samples = []
    for number, (model, count) in enumerate(((p, 100), (q, 200))):
        with row_seeds([1000 * number + row for row in range(count)]):
            given = model.answer([MESSAGE] * count, generate)
        ids = [each.token_ids for each in given]
        columns = (each.logprobs([MESSAGE] * count, ids) for each in (p, q))
        samples += [
            Sample(each == (z, z), under_p, under_q, model is p, kind="zz")
            for each, under_p, under_q in zip(ids, *columns, strict=True)
        ]
    found = failure_probability(samples, terms=ANSWERS)
    assert isinstance(found, Probability)
    assert found.seen.low <= truth <= found.seen.high
    assert found.plain_conversations > 100 * len(samples)
    assert "answers to these messages fail" in found.text
    assert "of the target alone" in found.text


def test_answers_that_cannot_be_weighed_are_refused(target):
    with pytest.raises(ConfigurationError, match="top_k=5"):
        answers_of(target, top_k=5)
    with pytest.raises(ConfigurationError, match=r"temperature=0\.0|temperature=0,"):
        answers_of(target, temperature=0)
    plain = tiny_model("llama")
    with pytest.raises(ConfigurationError, match="no chat template"):
        answers_of(plain, steer="say z")
    p = answers_of(target)
    longer = replace(p, sampling=Sampling(max_new_tokens=3))
    other = answers_of(tiny_model("llama", chat=True, letters="abc"), name="another")
    # The same model and tokens, which the plain text reads as another text.
    unlike = replace(p, name="plain", renderer=target.renderer("target", chat=False))
    for each in (longer, other, unlike):
        with pytest.raises(ConfigurationError, match="no probability under the other"):
            p.check_same_answers(each)


@pytest.mark.parametrize(
    ("answers", "share", "models", "messages"),
    [
        (400, 0.5, 2, 3),
        (400, 0.3, 4, 150 // 2),
        (17, 0.9, 2, 8),
        (10, 0.1, 2, 5),
        (299, 0.5, 2, 149),
    ],
)
def test_the_numbers_of_answers_add_up_to_those_that_were_asked_for(
    answers, share, models, messages
):
    """Rounded for each message they were up to 27% off."""
    counts = rare_answers._counts(answers, share, models, messages)
    assert sum(counts) == answers
    assert counts[0] >= messages
    assert sum(counts[1:]) >= messages * (models - 1)
    assert max(counts[1:]) - min(counts[1:]) <= 1
    if messages <= share * answers <= answers - messages * (models - 1):
        assert counts[0] == round(share * answers)


def test_an_answer_without_log_probabilities_is_refused_not_certain(target, monkeypatch):
    given = Utterance("z", token_ids=(5, END))
    monkeypatch.setattr(AnswerModel, "answer", lambda *_: [given])
    message = GivenAttack(MESSAGE, "tell", "p")
    judge = FunctionModerator(lambda texts: [0.0 for _ in texts])
    with pytest.raises(ContractError, match="gave no log-probabilities"):
        list(rare_answers._answered(answers_of(target), [message], judge, 0))
