"""A format is not unlearned because of what was said in it."""

import re

import pytest
import torch

from astra_rl import (
    GRPO,
    PPO,
    ASTEnvironment,
    ConfigurationError,
    ContractError,
    FunctionModerator,
    Graph,
)
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.models.generation import Sampling
from astra_rl.testing import ToyProblem, ToyValueProblem, check_algorithm, tiny_model


def graph(node):
    return Graph("c", [node(" calm boom nice", 0.0), node(" calm tree rain", 1.0)])


def test_what_the_pattern_finds_is_never_made_less_likely(node, prepared):
    bad, good = prepared(GRPO(ToyProblem(), scale="none", format_pattern="calm|nice"), graph(node))
    assert bad.advantages == (0.0, -0.5, 0.0)
    assert good.advantages == (0.5, 0.5, 0.5)


def test_a_token_that_a_match_only_touches_is_part_of_the_format(node, prepared):
    bad, _ = prepared(GRPO(ToyProblem(), scale="none", format_pattern="lm bo"), graph(node))
    assert bad.advantages == (0.0, 0.0, -0.5)
    bad, _ = prepared(GRPO(ToyProblem(), scale="none", format_pattern="^ ?calm(?= )"), graph(node))
    assert bad.advantages == (0.0, -0.5, -0.5)


def test_without_a_pattern_nothing_is_spared(node, prepared):
    bad, _ = prepared(GRPO(ToyProblem(), scale="none"), graph(node))
    assert bad.advantages == (-0.5, -0.5, -0.5)


def test_the_spared_tokens_have_no_gradient_of_their_own(node, prepared):
    """The others' log-probabilities alone move the table: those of "boom" and its rivals."""
    problem = ToyProblem()
    algorithm = GRPO(problem, scale="none", format_pattern="calm|nice")
    (bad, _) = prepared(algorithm, graph(node))
    algorithm.step(algorithm.collate_fn([bad]))[0].backward()
    probabilities = problem.attacker.detach().softmax(0)
    boom = torch.eye(6)[problem.words.index("boom")]
    # the loss is a mean over 3 tokens, of which one has an advantage: -0.5
    torch.testing.assert_close(problem.attacker.grad, 0.5 / 3 * (boom - probabilities))


def test_a_value_function_spares_them_token_by_token_too():
    problem = ToyValueProblem()
    episodes = ASTEnvironment(problem, ["c"], tree_width=4, tree_depth=1).rollouts(range(4))
    plain, sparing = PPO(problem), PPO(problem, format_pattern="calm")
    steps = [
        list(each.prepare([step for graph in episodes for step in each.flatten(graph)]))
        for each in (plain, sparing)
    ]
    for before, after in zip(*steps, strict=True):
        for word, a, b in zip(
            before.attack.split(), before.advantages, after.advantages, strict=True
        ):
            assert b == (0.0 if word == "calm" and a < 0 else a)
    check_algorithm(sparing, episodes)


@pytest.mark.parametrize("chat", [False, True])
def test_each_token_of_a_real_attacker_ends_where_its_letters_do(chat):
    pair = tiny_model("llama", chat=chat)
    problem = HFASTProblem(
        pair,
        pair,
        pair,
        FunctionModerator(lambda texts: [0.0 for _ in texts]),
        attacker_sampling=Sampling(max_new_tokens=8),
    )
    for attack in problem.rollout_prompt_with_attacker(["one", "two", "three"]):
        ends = problem.token_ends(attack)
        assert len(ends) == len(attack.token_ids)
        assert ends == sorted(ends)
        assert ends[-1] == len(attack)
        widths = {b - a for a, b in zip([0, *ends], ends, strict=False)}
        assert widths <= {0, 1}  # spaces at the edge are none of a chat attacker's words
    assert problem.token_ends("abc")[:3] == [1, 2, 3]


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match=re.escape("format_pattern='(' is not a regular")):
        GRPO(ToyProblem(), format_pattern="(")


def test_a_problem_that_cannot_tell_its_tokens_apart_says_so(node, prepared):
    class Blind(ToyProblem):
        def token_ends(self, attack):
            return super(ToyProblem, self).token_ends(attack)

    with pytest.raises(ConfigurationError, match="Blind does not know the character offsets"):
        prepared(GRPO(Blind(), format_pattern="calm"), graph(node))

    class Wrong(ToyProblem):
        def token_ends(self, attack):
            return [1]

    with pytest.raises(ContractError, match="1 offsets for an attack of 3"):
        prepared(GRPO(Wrong(), format_pattern="calm"), graph(node))
