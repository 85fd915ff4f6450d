import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from astra_rl.core.seeding import (
    current_row_seeds,
    derive_seed,
    episode_seeds,
    fresh_seed,
    repetitions,
    row_seeds,
    seeded,
)
from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ContractError


@pytest.mark.slow
def test_the_same_parts_give_the_same_seed_in_another_process():
    code = "from astra_rl.core.seeding import derive_seed; print(derive_seed(3, 'step', 7))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert int(printed) == derive_seed(3, "step", 7)


def test_seeds_fit_torch_and_differ_by_every_part():
    seeds = {derive_seed(a, name, b) for a in range(9) for name in ("x", "y") for b in range(9)}
    assert len(seeds) == 9 * 2 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_numpy_integer_and_a_kind_of_string_are_what_they_stand_for():
    assert derive_seed(np.int64(3), Utterance("a")) == derive_seed(3, "a")
    assert derive_seed(np.str_("a")) == derive_seed("a")


def test_a_number_and_its_digits_are_different_seeds():
    assert derive_seed(1, "2") != derive_seed("1", 2)


def test_seed_zero_is_a_seed():
    assert episode_seeds(0, 4) == episode_seeds(0, 4)
    assert episode_seeds(0, 4) != episode_seeds(1, 4)
    assert episode_seeds(None, 4) != episode_seeds(None, 4)


def test_the_episodes_of_one_seed_differ_and_do_not_depend_on_their_number():
    assert len(set(episode_seeds(0, 100))) == 100
    assert episode_seeds(5, 3) == episode_seeds(5, 8)[:3]


def test_torch_manual_seed_governs_fresh_seeds():
    def draw():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return [fresh_seed(), fresh_seed()]

    first = draw()
    assert first == draw()
    assert first[0] != first[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seeded_block_repeats_and_leaves_the_global_generator_as_it_was(seed):
    def draw():
        with seeded(seed) as generator:
            return torch.rand(3).tolist(), generator.random()

    torch.manual_seed(9)
    undisturbed = torch.rand(2).tolist()
    torch.manual_seed(9)
    assert draw() == draw()
    assert torch.rand(2).tolist() == undisturbed


def test_without_a_seed_a_block_is_unpredictable():
    with seeded(None) as first, seeded(None) as second:
        assert isinstance(first, random.Random)
        assert first.random() != second.random()


def test_row_seeds_hold_inside_their_block_only():
    with row_seeds([3, 4]):
        assert current_row_seeds(2) == (3, 4)
        with row_seeds([5]):
            assert current_row_seeds(1) == (5,)
        assert current_row_seeds(2) == (3, 4)
    assert current_row_seeds(2) != (3, 4)


def test_row_seeds_for_another_number_of_rows_are_refused():
    with row_seeds([3, 4]), pytest.raises(ContractError, match=r"3 rows .* 2 row seeds"):
        current_row_seeds(3)


def test_an_error_inside_the_block_ends_it():
    with pytest.raises(KeyError), row_seeds([3]):
        raise KeyError
    assert current_row_seeds(1) != (3,)


def test_repetitions_count_how_often_an_entry_came_before():
    assert repetitions(["a", "b", "a", 0, "a", 0]) == [0, 0, 1, 0, 2, 1]


def test_repetitions_of_openings_with_one_visible_text_are_told_apart():
    goals = [Conversation(facts={"goal": goal}) for goal in ("a", "b", "a")]
    assert repetitions([*goals, "text", Conversation("text")]) == [0, 0, 1, 0, 1]
