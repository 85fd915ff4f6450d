"""The pages on algorithms name each of them and its options, with the defaults they have."""

import inspect
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from astra_rl import KTO, PPO, PolicyGradient
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.actor_critic import ActorCritic
from astra_rl.algorithms.dpo import PairwiseAlgorithm
from astra_rl.algorithms.grpo import GroupPolicyGradient
from astra_rl.algorithms.registry import is_pairwise

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "algorithms.md").read_text("utf-8")
PREFERENCES = (
    (DOCS / "preferences-and-balance.md")
    .read_text("utf-8")
    .split("\n## Preferences\n", 1)[1]
    .split("\n## ", 1)[0]
)
PAIRWISE = [name for name, kind in ALGORITHMS.items() if issubclass(kind, PairwiseAlgorithm)]
FAMILY = [name for name, kind in ALGORITHMS.items() if issubclass(kind, PolicyGradient)]


def options_in(section):
    """Option and default of each row of the first table of options in a section."""
    table = section.split("| option | default | meaning |\n", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|required) \|", table, re.MULTILINE)
    return {name: eval(default) if default else inspect.Parameter.empty for name, default in rows}


def options_of(kind):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def test_the_pairwise_algorithms_are_known_without_importing_them():
    assert [name for name in ALGORITHMS if is_pairwise(name)] == PAIRWISE
    assert not is_pairwise("a_package.of_mine:DPO")


@pytest.mark.parametrize("name", FAMILY)
def test_each_algorithm_has_a_section_with_its_options_and_their_defaults(name):
    section = PAGE.split(f"\n### `{name}`\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    assert options_in(section) == options_of(ALGORITHMS[name])
    assert f"| `{name}` | `{ALGORITHMS[name].__name__}` |" in PAGE


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        (PolicyGradient, "## Options of all policy-gradient algorithms"),
        (GroupPolicyGradient, "Algorithms with a group baseline also take:"),
        (ActorCritic, "Like `ppo` it takes the options of a value function:"),
    ],
)
def test_the_options_of_the_bases_are_there_too(kind, before):
    assert options_in(PAGE.split(before, 1)[1]) == options_of(kind)


@pytest.mark.parametrize("name", PAIRWISE)
def test_each_loss_of_pairs_is_in_the_table_with_the_defaults_it_has(name):
    assert f"| `{name}` | `{ALGORITHMS[name].__name__}` |" in PREFERENCES
    defaults = options_of(PairwiseAlgorithm) | options_of(ALGORITHMS[name])
    row = f'| `{name}` | `{defaults["beta"]}` | `"{defaults["reduce"]}"` |'
    own = [each for each in defaults if each not in options_of(PairwiseAlgorithm)]
    row += "".join(f" `{each}` | `{defaults[each]}` |" for each in own) or " | |"
    assert row in PREFERENCES


@pytest.mark.parametrize(
    ("kind", "before"), [(PairwiseAlgorithm, "All of them take:"), (KTO, "### `kto`")]
)
def test_the_options_of_preferences_are_there_with_their_defaults(kind, before):
    assert options_in(PREFERENCES.split(before, 1)[1]) == options_of(kind)


def all_options_of(kind):
    """Options of the constructor, also those that it passes on to its bases."""
    names = set(options_of(kind))
    for base in kind.__mro__:
        if "__init__" in vars(base):
            hint = get_type_hints(base.__init__, include_extras=True).get("options")
            if hint is not None:
                names |= set(get_args(hint)[0].__annotations__)
    return names


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_docstring_of_each_algorithm_describes_each_option(name):
    documentation = inspect.getdoc(ALGORITHMS[name])
    described = set(re.findall(r"^    (\w+): ", documentation, re.MULTILINE))
    assert all_options_of(ALGORITHMS[name]) <= described
    assert not re.search(r"^    \w+: See ", documentation, re.MULTILINE)


def test_shared_options_are_documented_with_the_defaults_of_the_class():
    documentation = " ".join(inspect.getdoc(PPO).split())
    assert "epochs: Number of passes over the batches of one experience" in documentation
    assert re.search(r"epochs: [^:]*Default: 4\.", documentation)
    assert re.search(r"clip_low: .*? Default: 0\.2\.", documentation)


def test_the_table_of_estimators_says_of_every_algorithm_what_its_gradient_is():

    table = PAGE.partition("| estimator | its gradient is the gradient of | unbiased when |")[2]
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines() if "|" in line]
    assert set(ALGORITHMS) <= set(re.findall(r"`([^`]+)`", " ".join(rows)))
