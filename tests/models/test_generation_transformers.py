from collections import Counter

import pytest
from scipy.stats import chi2_contingency

from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.generation_transformers import generate_with_transformers
from astra_rl.models.scoring import continuation_logprobs
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
