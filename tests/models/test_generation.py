import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.cases import also
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.models import decoding, generation
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.segments import hidden_states
from astra_rl.models.token_sampling import sample_tokens
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow

STOP = frozenset({3})
SHARED = [2, 9, 10, 11, 12, 13, 14, 15, 16, 17]
PROMPTS = [[2], [*SHARED, 5], [*SHARED, 6, 7], [4, 8, 20], [*SHARED, 5], [30, 31, 32, 33]]

prompt_sets = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(2, 36), min_size=1, max_size=6)).map(
        lambda parts: [*(SHARED if parts[0] else []), *parts[1]]
    ),
    min_size=1,
    max_size=7,
)


def by_warpers(logits, sampling):
    """Log-probabilities as transformers' own sampling has them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(None, logits).log_softmax(-1)


@settings(max_examples=20, deadline=None)
@given(prompts=prompt_sets, random=st.randoms(use_true_random=False))
def test_a_rows_text_depends_on_its_prompt_and_seed_only(model, prompts, random):
    sampling = Sampling(max_new_tokens=6)
    seeds = [random.randrange(2**32) for _ in prompts]
    together = generate(model, prompts, sampling, seeds, stop_ids=STOP)
    order = random.sample(range(len(prompts)), len(prompts))
    moved = generate(
        model, [prompts[i] for i in order], sampling, [seeds[i] for i in order], stop_ids=STOP
    )
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = generate(model, [prompt], sampling, [seed], stop_ids=STOP)[0]
        for other in (together[row], moved[order.index(row)]):
            assert other.token_ids == alone.token_ids
            assert other.finish_reason == alone.finish_reason
            assert other.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_greedy_text_is_that_of_transformers_generate(model):
    ours = generate(
        model, PROMPTS, Sampling(max_new_tokens=20, temperature=0), [0] * 6, stop_ids=STOP
    )
    for prompt, sample in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=3,
            pad_token_id=0,
        )
        assert sample.token_ids == tuple(theirs[0, len(prompt) :].tolist())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=2),
        also(Sampling(max_new_tokens=2, temperature=0.5)),
        Sampling(max_new_tokens=2, temperature=3.0),
        also(Sampling(max_new_tokens=2, top_k=3)),
        also(Sampling(max_new_tokens=2, top_p=0.7)),
        Sampling(max_new_tokens=2, temperature=1.5, top_k=5, top_p=0.8),
    ],
    ids=lambda sampling: f"t{sampling.temperature}-k{sampling.top_k}-p{sampling.top_p}",
)
def test_samples_follow_the_models_distribution(sharpened, sampling):
    small = sharpened(tiny_model(letters="abc").model, 0.3)
    prompt, count = [2, 5, 6], 4000
    samples = generate(small, [prompt] * count, sampling, range(count), stop_ids=frozenset())
    with torch.no_grad():
        first = by_warpers(small(torch.tensor([prompt])).logits[:, -1], sampling)[0]
        longer = torch.tensor([[*prompt, token] for token in range(8)])
        second = by_warpers(small(longer).logits[:, -1], sampling)
    joint = (first[:, None] + second).exp()
    observed = torch.zeros(8, 8)
    for sample in samples:
        observed[sample.token_ids] += 1
        a, b = sample.token_ids
        assert sample.logprobs == pytest.approx([float(first[a]), float(second[a, b])], abs=1e-4)
    assert not observed[joint == 0].any()
    expected = (joint * count).flatten()
    common = expected >= 5
    cells = [*observed.flatten()[common].tolist(), float(observed.flatten()[~common].sum())]
    theory = [*expected[common].tolist(), float(expected[~common].sum())]
    if theory[-1] < 5:  # too rare to count by themselves
        cells[-2:], theory[-2:] = [sum(cells[-2:])], [sum(theory[-2:])]
    assert len(cells) > 5
    assert chisquare(cells, [each * count / sum(theory) for each in theory]).pvalue > 0.01


def test_logprobs_are_those_that_scoring_gives(model):
    samples = generate(model, PROMPTS, Sampling(max_new_tokens=12), range(6), stop_ids=STOP)
    with torch.no_grad():
        scored = continuation_logprobs(model, PROMPTS, [sample.token_ids for sample in samples])
    for row, sample in enumerate(samples):
        assert sample.logprobs == pytest.approx(
            scored[row, : len(sample.token_ids)].tolist(), abs=1e-4
        )


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_texts_do_not_depend_on_how_often_stop_tokens_are_looked_for(model, monkeypatch, steps):
    stop = frozenset(range(3, 12))
    sampling = Sampling(max_new_tokens=25)
    each = generate(model, PROMPTS, sampling, range(6), stop_ids=stop)
    monkeypatch.setattr(decoding, "STEPS_PER_CHECK", {"cpu": steps})
    for sample, expected in zip(
        generate(model, PROMPTS, sampling, range(6), stop_ids=stop), each, strict=True
    ):
        assert sample.token_ids == expected.token_ids
        assert sample.finish_reason == expected.finish_reason
        assert sample.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_finished_rows_leave_and_the_others_go_on_as_before(model, monkeypatch):
    widths = []

    def watched(model, ids, *rest):
        widths.append(ids.shape[0])
        return hidden_states(model, ids, *rest)

    monkeypatch.setattr(decoding, "hidden_states", watched)
    stop = frozenset(range(3, 12))
    sampling = Sampling(max_new_tokens=25)
    prompts = [[2, 5 + row % 20] for row in range(24)]
    together = generate(model, prompts, sampling, range(24), stop_ids=stop)
    steps = len(widths)
    assert widths[0] > widths[-1]
    assert widths == sorted(widths, reverse=True)
    assert steps == max(len(sample.token_ids) for sample in together) - 1
    assert len({len(sample.token_ids) for sample in together}) > 4
    for row, sample in enumerate(together):
        alone = generate(model, [prompts[row]], sampling, [row], stop_ids=stop)[0]
        assert sample.token_ids == alone.token_ids


def test_a_row_ends_with_its_first_end_token_or_at_the_limit(model):
    stop = frozenset({3, 8, 9, 10, 11, 12})
    samples = generate(model, [[2]] * 40, Sampling(max_new_tokens=5), range(40), stop_ids=stop)
    for sample in samples:
        *before, last = sample.token_ids
        assert stop.isdisjoint(before)
        assert len(sample.logprobs) == len(sample.token_ids) <= 5
        assert sample.finish_reason == ("stop" if last in stop else "length")
        assert last in stop or len(sample.token_ids) == 5
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}


def test_an_end_token_at_the_limit_counts_as_an_end(model):
    everything = frozenset(range(37))
    samples = generate(model, PROMPTS, Sampling(max_new_tokens=1), range(6), stop_ids=everything)
    assert all(len(sample.token_ids) == 1 for sample in samples)
    assert {sample.finish_reason for sample in samples} == {"stop"}


def test_one_new_token_and_no_end_token_are_enough(model):
    samples = generate(model, PROMPTS, Sampling(max_new_tokens=1), range(6), stop_ids=frozenset())
    assert all(len(sample.token_ids) == 1 for sample in samples)
    assert {sample.finish_reason for sample in samples} == {"length"}


def test_a_lower_limit_cuts_the_same_text(model):
    long, short = (
        generate(model, PROMPTS, Sampling(max_new_tokens=limit), range(6), stop_ids=STOP)
        for limit in (20, 7)
    )
    for whole, start in zip(long, short, strict=True):
        assert whole.token_ids[:7] == start.token_ids


def test_seeds_decide_and_zero_is_a_seed(model):
    same, again, other = (
        generate(model, [[2, 5]], Sampling(), [seed], stop_ids=STOP)[0].token_ids
        for seed in (0, 0, 1)
    )
    assert same == again
    assert same != other


def test_torchs_global_generator_is_left_alone(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generate(model, PROMPTS, Sampling(), range(6), stop_ids=STOP)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_cut_without_a_trace(model, monkeypatch):
    spans = [(1, len(prompt)) for prompt in PROMPTS]

    def run():
        return generate(
            model, PROMPTS, Sampling(max_new_tokens=6), range(6), stop_ids=STOP, score_spans=spans
        )

    whole = run()
    monkeypatch.setattr(generation, "MAX_BATCH_ROWS", 2)
    for sample, cut in zip(whole, run(), strict=True):
        assert sample.token_ids == cut.token_ids
        assert sample.prompt_logprobs == pytest.approx(cut.prompt_logprobs, abs=1e-5)


def test_no_prompts_give_no_samples(model):
    assert generate(model, [], Sampling(), [], stop_ids=STOP) == []


def test_prompts_are_scored_as_by_a_plain_forward(model, plain_logprobs):
    spans = [(1, 1), (10, 11), (1, 12), (2, 3), (4, 8), (1, 4)]
    samples = generate(
        model, PROMPTS, Sampling(max_new_tokens=3), range(6), stop_ids=STOP, score_spans=spans
    )
    silent = generate(model, PROMPTS, Sampling(max_new_tokens=3), range(6), stop_ids=STOP)
    for prompt, span, sample, unscored in zip(PROMPTS, spans, samples, silent, strict=True):
        start, stop = span
        plain = plain_logprobs(model, prompt[:stop], start).tolist()
        assert sample.prompt_logprobs == pytest.approx(plain, abs=1e-5)
        assert sample.token_ids == unscored.token_ids
        assert unscored.prompt_logprobs == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(model, value, temperature):
    broken = copy.deepcopy(model)
    broken.get_input_embeddings().weight[:] = value
    with pytest.raises(ModelError, match=r"not finite.*float16"):
        generate(broken, PROMPTS, Sampling(temperature=temperature), range(6), stop_ids=STOP)


@given(
    uniform=st.sampled_from([0.0, 1e-30, 0.5, 1 - 2**-24, 1.0]) | st.floats(0, 1, width=32),
    seed=st.integers(0, 10**6),
    top_k=st.integers(1, 5),
    temperature=st.sampled_from([1e-6, 0.1, 1.0, 50.0]),
)
def test_no_draw_picks_a_token_that_was_cut_off(uniform, seed, top_k, temperature):
    logits = 5 * torch.randn(1, 30, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(top_k=top_k, top_p=0.95, temperature=temperature)
    tokens, logprobs = sample_tokens(logits, torch.tensor([uniform]), sampling)
    assert torch.isfinite(logprobs).all()
    assert int(tokens) in logits.topk(top_k).indices[0].tolist()


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1000, 1024])
def test_a_draw_inverts_the_cumulative_distribution_of_any_vocabulary(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(200, vocabulary, generator=generator) * 2
    uniforms = torch.rand(200, generator=generator)
    tokens, logprobs = sample_tokens(logits, uniforms, Sampling())
    exact = logits.double().softmax(-1)
    upper = exact.cumsum(-1).gather(1, tokens[:, None]).squeeze(1)
    lower = upper - exact.gather(1, tokens[:, None]).squeeze(1)
    assert ((lower - 1e-6 <= uniforms) & (uniforms <= upper + 1e-6)).all()
    expected = exact.gather(1, tokens[:, None]).squeeze(1).log().float()
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-24])
def test_a_draw_finds_the_only_possible_token_wherever_it_is(uniform):
    for token in (0, 255, 256, 511, 512, 599):
        logits = torch.full((1, 600), -torch.inf)
        logits[0, token] = 3.0
        tokens, logprobs = sample_tokens(logits, torch.tensor([uniform]), Sampling())
        assert tokens.tolist() == [token]
        assert logprobs.tolist() == [0.0]


def test_tokens_that_the_model_forbids_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.0, 0.5, 1.0]), Sampling())
    assert tokens.tolist() == [1, 3, 3]
    assert logprobs.tolist() == pytest.approx([-0.6931472] * 3)


def test_greedy_takes_the_likeliest_token_with_certainty():
    tokens, logprobs = sample_tokens(
        torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.99]), Sampling(temperature=0)
    )
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == [0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_sampling_that_makes_no_sense_is_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        Sampling(**wrong)


def test_sampling_knows_whether_it_is_exact():
    assert Sampling(max_new_tokens=5).is_exact
    for change in ({"temperature": 0.9}, {"temperature": 0}, {"top_k": 5}, {"top_p": 0.9}):
        assert not dataclasses.replace(Sampling(), **change).is_exact


def test_the_likeliest_text_of_the_same_prompt_is_computed_once(model, monkeypatch):
    greedy = Sampling(max_new_tokens=4, temperature=0)
    prompts = [PROMPTS[1], PROMPTS[2], PROMPTS[1], PROMPTS[1]]
    spans = [(3, 5), (3, 5), (3, 5), (4, 5)]
    alone = [
        generate(model, [prompt], greedy, [0], stop_ids=STOP, score_spans=[span])[0]
        for prompt, span in zip(prompts, spans, strict=True)
    ]
    sizes = []
    batch = generation._generate_batch
    monkeypatch.setattr(
        generation,
        "_generate_batch",
        lambda model, prompts, *rest: sizes.append(len(prompts)) or batch(model, prompts, *rest),
    )
    together = generate(model, prompts, greedy, range(4), stop_ids=STOP, score_spans=spans)
    assert sum(sizes) == 3
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.prompt_logprobs == pytest.approx(theirs.prompt_logprobs, abs=1e-5)
