"""Whatever runs a model on a batch goes on in halves when memory is short, with the same result."""

import pytest
import torch
from tests.cases import also

from astra_rl.errors import OutOfMemoryError
from astra_rl.models import generation_transformers, segments
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.embedding import mean_hidden_states
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.value_head import preceding_hidden_states
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow

PROMPTS = [[5, 6, 7], [5, 6, 7, 8], [9, 10], [11, 12, 13, 14], [5, 6, 7], [20], [21, 22]]
SAID = [[15, 16], [17], [18, 19, 20], [21], [16], [22, 23], [24]]


@pytest.fixture(scope="module")
def model():
    return tiny_model().model


@pytest.fixture
def small(monkeypatch):
    """A device with room for two rows; returns what was too large for it."""
    too_large = []
    inner = segments.hidden_states

    def hidden_states(model, ids, *arguments):
        if len(ids) > 2:
            too_large.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, ids, *arguments)

    def shrink():
        monkeypatch.setattr(segments, "hidden_states", hidden_states)
        return too_large

    return shrink


def sampled(model, **options):
    return generate(
        model, PROMPTS, Sampling(max_new_tokens=5), range(7), stop_ids=frozenset([3]), **options
    )


def test_sampling_gives_the_same_texts(model, small):
    whole = sampled(
        model, score_spans=[(1, len(p)) for p in PROMPTS], prefix_cache=ConversationCache()
    )
    too_large = small()
    halved = sampled(
        model, score_spans=[(1, len(p)) for p in PROMPTS], prefix_cache=ConversationCache()
    )
    assert too_large
    assert [each.token_ids for each in halved] == [each.token_ids for each in whole]
    for ours, theirs in zip(halved, whole, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert ours.prompt_logprobs == pytest.approx(theirs.prompt_logprobs, abs=1e-5)


def test_sampling_that_runs_out_of_memory_in_the_middle_gives_the_same_texts(model, monkeypatch):
    from astra_rl.models import decoding

    whole = sampled(model)
    inner, calls = decoding.hidden_states, []

    def hidden_states(model, ids, mask, *arguments):
        calls.append(len(ids))
        if len(ids) > 3 and len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, ids, mask, *arguments)

    monkeypatch.setattr(decoding, "hidden_states", hidden_states)
    halved = sampled(model, prefix_cache=ConversationCache())
    assert [each.token_ids for each in halved] == [each.token_ids for each in whole]
    assert max(calls[3:]) < max(calls)


@torch.no_grad()
@pytest.mark.parametrize("run", [continuation_logprobs, also(preceding_hidden_states)])
def test_scoring_gives_the_same_numbers(model, small, run):
    whole = run(model, PROMPTS, SAID)
    too_large = small()
    torch.testing.assert_close(run(model, PROMPTS, SAID), whole, rtol=1e-5, atol=1e-5)
    assert too_large


def test_embedding_gives_the_same_vectors(model, small):
    whole = mean_hidden_states(model, PROMPTS)
    too_large = small()
    torch.testing.assert_close(mean_hidden_states(model, PROMPTS), whole, rtol=1e-5, atol=1e-5)
    assert too_large


def test_the_sampler_of_transformers_goes_on_too(model, monkeypatch):
    inner, sizes = generation_transformers._generate_batch, []

    def batch(model, prompts, *arguments):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, prompts, *arguments)

    monkeypatch.setattr(generation_transformers, "_generate_batch", batch)
    samples = generation_transformers.generate_with_transformers(
        model, PROMPTS, Sampling(max_new_tokens=3), range(7), stop_ids=frozenset([3])
    )
    assert len(samples) == 7
    assert sizes[0] == 7


def test_a_single_row_too_large_is_a_named_error(model, monkeypatch):
    def hidden_states(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segments, "hidden_states", hidden_states)
    with pytest.raises(OutOfMemoryError, match="while sampling"):
        sampled(model)
