import pytest
import torch

from astra_rl.models import conversation_cache, segments
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import Sampling, generate
from astra_rl.testing import tiny_model

OPENINGS = [[2, 9, 10, 11, 12, 13, 14, 15], [4, 8, 20, 21, 22], [2, 9, 10, 11, 12, 13, 14, 15, 7]]
REPLIES = [[30, 31], [32], [33, 34, 35]]
SAMPLING = Sampling(max_new_tokens=5)
STOP = frozenset({3})


@pytest.fixture
def tokens_read(monkeypatch):
    """Sizes of the model's inputs in tokens, padding included."""
    sizes = []
    original = segments.hidden_states

    def counted(model, ids, *args):
        sizes.append(ids.numel())
        return original(model, ids, *args)

    monkeypatch.setattr(segments, "hidden_states", counted)
    return sizes


def talk(model, cache, *, turns=3, width=2, score=False):
    """Sample conversations that branch at every turn; return all samples."""
    paths = [[*opening] for opening in OPENINGS]
    said = []
    for turn in range(turns):
        paths = [path for path in paths for _ in range(width)]
        starts = [len(path) for path in paths]
        asked = [path + REPLIES[(row + turn) % 3] for row, path in enumerate(paths)]
        spans = [(start, len(ids)) for start, ids in zip(starts, asked, strict=True)]
        samples = generate(
            model,
            asked if score else paths,
            SAMPLING,
            [1000 * turn + row for row in range(len(paths))],
            stop_ids=STOP,
            score_spans=spans if score else None,
            prefix_cache=cache,
        )
        said.extend(samples)
        paths = [
            (ids if score else path) + list(sample.token_ids) + ([] if score else [5])
            for path, ids, sample in zip(paths, asked, samples, strict=True)
        ]
    return said


@pytest.mark.parametrize("score", [False, True])
def test_the_cache_does_not_change_samples(model, score):
    for plain, cached in zip(
        talk(model, None, score=score),
        talk(model, ConversationCache(), score=score),
        strict=True,
    ):
        assert cached.token_ids == plain.token_ids
        assert cached.logprobs == pytest.approx(plain.logprobs, abs=1e-5)
        assert cached.prompt_logprobs == pytest.approx(plain.prompt_logprobs, abs=1e-5)


@pytest.mark.parametrize("score", [False, True])
def test_a_turn_computes_only_new_tokens(model, tokens_read, score):
    talk(model, None, score=score)
    plain = sum(tokens_read)
    tokens_read.clear()
    talk(model, ConversationCache(), score=score)
    assert sum(tokens_read) < 0.75 * plain


def test_a_conversation_without_cached_prefix_is_computed_whole(model):
    cache = ConversationCache()
    generate(model, OPENINGS, SAMPLING, range(3), stop_ids=STOP, prefix_cache=cache)
    stranger = [35, 34, 33, 32, 31]
    prompts = [[*OPENINGS[0], 6, 7], stranger, [*OPENINGS[2], 8], [*OPENINGS[1], 5]]
    together = generate(model, prompts, SAMPLING, range(4), stop_ids=STOP, prefix_cache=cache)
    for row, prompt in enumerate(prompts):
        alone = generate(model, [prompt], SAMPLING, [row], stop_ids=STOP)[0]
        assert together[row].token_ids == alone.token_ids
        assert together[row].logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_cached_prompt_needs_one_new_token(model, tokens_read):
    cache = ConversationCache()
    first = generate(model, OPENINGS, SAMPLING, range(3), stop_ids=STOP, prefix_cache=cache)
    longer = [[*opening, 6] for opening in OPENINGS]
    plain = generate(model, longer, SAMPLING, range(3), stop_ids=STOP)
    tokens_read.clear()
    again = generate(model, longer, SAMPLING, range(3), stop_ids=STOP, prefix_cache=cache)
    assert tokens_read[0] == len(OPENINGS)
    assert [each.token_ids for each in again] == [each.token_ids for each in plain]
    assert first != again


def test_the_oldest_batch_is_evicted_above_the_size_limit(model, monkeypatch):
    monkeypatch.setattr(conversation_cache, "MAX_CACHE_BYTES", 1)
    cache = ConversationCache()
    talk(model, cache)
    assert cache.lookup(OPENINGS) is None


def test_lookup_needs_half_of_the_tokens_cached():
    llama = tiny_model("llama").model
    cache = ConversationCache()
    generate(llama, [[2, 9, 10]], SAMPLING, [0], stop_ids=STOP, prefix_cache=cache)
    assert cache.lookup([[2, 9, 10, 4, 5]]) is not None
    assert cache.lookup([[2, 9, 10, 4, 5, 6, 7]]) is None
    assert cache.lookup([[2, 9, 10, 4], []]) is None


def test_later_tokens_do_not_change_cached_entries(model):
    cache = ConversationCache()
    generate(model, OPENINGS[:1], SAMPLING, [0], stop_ids=STOP, prefix_cache=cache)
    (kept,) = cache._batches
    before = [keys.clone() for keys, _ in kept.layers]
    generate(
        model, [[*OPENINGS[0], 6]], SAMPLING, [1], stop_ids=STOP, prefix_cache=cache
    )  # fmt: skip
    for keys, (now, _) in zip(before, kept.layers, strict=True):
        assert torch.equal(keys, now)
