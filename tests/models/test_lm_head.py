import copy

import pytest
import torch

from astra_rl.models import lm_head as head
from astra_rl.models.lm_head import lm_head_logits, token_logprobs

ROWS = 11


@pytest.fixture
def states(model):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, model.config.hidden_size, generator=generator)
    vocabulary = model.config.vocab_size
    return hidden, torch.randint(vocabulary, (ROWS,), generator=generator)


def few_at_a_time(model, monkeypatch, rows):
    monkeypatch.setattr(head, "MAX_LOGIT_BYTES", 4 * model.config.vocab_size * rows)
    sizes = []
    original = head.lm_head_logits

    def counted(model, hidden):
        sizes.append(len(hidden))
        return original(model, hidden)

    monkeypatch.setattr(head, "lm_head_logits", counted)
    return sizes


def plain(model, hidden, tokens):
    return lm_head_logits(model, hidden).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


@pytest.mark.parametrize("rows", [1, 4, 11, 100])
@torch.no_grad()
def test_logits_exist_a_few_at_a_time(model, states, monkeypatch, rows):
    sizes = few_at_a_time(model, monkeypatch, rows)
    logprobs = token_logprobs(model, *states)
    assert sum(sizes) == ROWS
    assert max(sizes) <= rows
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, plain(model, *states), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [3, 100])
def test_gradients_reach_hidden_states_and_head_all_the_same(model, states, monkeypatch, rows):
    hidden, tokens = states
    weights = torch.linspace(-1, 2, ROWS)
    gradients = []
    for score in (plain, token_logprobs):
        trained = copy.deepcopy(model)
        trained.get_output_embeddings().weight.requires_grad_(True)
        leaf = hidden.clone().requires_grad_()
        if score is token_logprobs:
            few_at_a_time(model, monkeypatch, rows)
        (score(trained, leaf, tokens) * weights).sum().backward()
        gradients.append((leaf.grad, trained.get_output_embeddings().weight.grad))
    for expected, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_states_have_no_log_probabilities(model, states):
    hidden, tokens = states
    assert token_logprobs(model, hidden[:0], tokens[:0]).shape == (0,)
