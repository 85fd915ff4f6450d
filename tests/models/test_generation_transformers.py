import copy
from collections import Counter
from itertools import cycle, product

import pytest
import torch
from scipy.stats import chi2_contingency
from tests.cases import cases
from transformers import GenerationConfig

from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.generation_transformers import generate_with_transformers
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.moderators import FunctionModerator
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow

STOP = frozenset({3})
PROMPTS = [[2, 9, 10, 11], [4], [30, 31, 32, 33, 34, 35, 36]]


def test_greedy_text_is_that_of_the_engine(model):
    greedy = Sampling(max_new_tokens=12, temperature=0)
    ours, theirs = (
        sample(model, PROMPTS, greedy, range(3), stop_ids=STOP)
        for sample in (generate, generate_with_transformers)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=2),
        Sampling(max_new_tokens=2, temperature=0.7, top_k=6),
        Sampling(max_new_tokens=2, top_p=0.8),
    ],
    ids=str,
)
def test_samples_come_from_the_distribution_of_the_engine(model, sampling):
    def counts(sample):
        drawn = sample(model, [PROMPTS[0]] * 1500, sampling, range(1500), stop_ids=STOP)
        return Counter(each.token_ids for each in drawn)

    ours, theirs = counts(generate), counts(generate_with_transformers)
    common = [text for text in ours | theirs if ours[text] + theirs[text] >= 20]
    columns = [[found[text] for found in (ours, theirs)] for text in common]
    rest = [1500 - sum(column) for column in zip(*columns, strict=True)]
    assert chi2_contingency([*columns, rest] if sum(rest) else columns).pvalue > 1e-4


def test_log_probabilities_are_those_of_the_engine(model):
    spans = [(1, 4), (1, 1), (3, 6)]
    exact = generate_with_transformers(
        model, PROMPTS, Sampling(max_new_tokens=6), range(3), stop_ids=STOP, score_spans=spans
    )
    engine = generate(
        model, PROMPTS, Sampling(max_new_tokens=1), range(3), stop_ids=STOP, score_spans=spans
    )
    scored = continuation_logprobs(model, PROMPTS, [each.token_ids for each in exact])
    for row, each in enumerate(exact):
        assert each.logprobs == pytest.approx(scored[row, : len(each.token_ids)].tolist(), abs=1e-4)
        assert each.prompt_logprobs == pytest.approx(engine[row].prompt_logprobs, abs=1e-4)


OWN_SETTINGS = [
    {"min_p": 0.2},
    {"typical_p": 0.5},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.01},
    {"top_h": 0.5},
    {"temperature": 0.3, "top_k": 3, "top_p": 0.4, "repetition_penalty": 1.5},
    {"encoder_repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1},
    {"bad_words_ids": [[5], [6], [7]]},
    {"suppress_tokens": [5, 6, 7]},
    {"begin_suppress_tokens": list(range(4, 30))},
    {"sequence_bias": [[[5], 9.0]]},
    {"forced_eos_token_id": 3},
    {"forced_bos_token_id": 9},
    {"exponential_decay_length_penalty": (1, 3.0)},
    {"guidance_scale": 2.0},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 3, "num_return_sequences": 2},
    {"min_new_tokens": 6},
    {"min_length": 40},
    {"max_length": 8},
    {"max_time": 0.0001},
    {"prompt_lookup_num_tokens": 3},
    {"eos_token_id": list(range(4, 40))},
    {"use_cache": False},
    {"custom_entry": 3},
]


@pytest.mark.parametrize(
    ("temperature", "own"),
    cases(
        product([1.0, 0.0], range(len(OWN_SETTINGS))),
        by_default=set(zip(cycle([1.0, 0.0]), range(len(OWN_SETTINGS)))),
    ),
    ids=[f"{how}-{next(iter(own))}" for how, own in product(["sampled", "greedy"], OWN_SETTINGS)],
)
def test_settings_of_the_model_do_not_change_what_is_sampled(model, own, temperature):
    sampling = Sampling(max_new_tokens=6, temperature=temperature)

    def samples():
        return generate_with_transformers(model, PROMPTS, sampling, range(3), stop_ids=STOP)

    expected = samples()
    settings = GenerationConfig(**OWN_SETTINGS[own])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "generation_config", settings)
        found = samples()
        assert model.generation_config is settings
    assert found == expected
    if temperature:
        scored = continuation_logprobs(model, PROMPTS, [each.token_ids for each in found])
        for row, each in enumerate(found):
            known = scored[row, : len(each.token_ids)].tolist()
            assert each.logprobs == pytest.approx(known, abs=1e-4)


def test_settings_of_a_model_with_an_adapter_do_not_change_what_is_sampled(model):
    adapted = make_trainable(copy.deepcopy(model), lora=LoraOptions())
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # zero at first, so that the adapter would change nothing
            torch.nn.init.normal_(weight)
    adapted.get_base_model().generation_config = GenerationConfig(min_p=0.2, num_beams=2)
    found = generate_with_transformers(
        adapted, PROMPTS, Sampling(max_new_tokens=6), range(3), stop_ids=STOP
    )
    scored = continuation_logprobs(adapted, PROMPTS, [each.token_ids for each in found])
    for row, each in enumerate(found):
        known = scored[row, : len(each.token_ids)].tolist()
        assert each.logprobs == pytest.approx(known, abs=1e-4)
    assert adapted.get_base_model().generation_config.min_p == 0.2


def test_a_problem_samples_with_what_it_is_given():
    pair = tiny_model()
    problem = HFASTProblem(
        pair, pair, pair, FunctionModerator(lambda texts: [0.5] * len(texts)),
        sampler=generate_with_transformers,
        attacker_sampling=Sampling(max_new_tokens=4), target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    (graph,) = ASTEnvironment(problem, ["hello"], 2, 2).rollouts([0])
    nodes = list(graph.nodes())
    assert len(nodes) == 6
    assert all(len(node.attack.token_ids) == len(node.attack.logprobs) for node in nodes)
