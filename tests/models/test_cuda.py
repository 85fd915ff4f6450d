"""Exactness of sampling, scoring and training on a device; the same checks as `benchmarks/gpu.py`.

They run on the CPU everywhere, and on a GPU where there is one.
"""

import pytest
import torch
from benchmarks import gpu_checks

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def test_greedy_texts_are_those_of_one_pass_per_token(device):
    assert gpu_checks.greedy_difference(device) == 0


def test_a_prefix_cache_changes_no_greedy_text(device):
    assert gpu_checks.cache_difference(device) == 0


def test_a_text_does_not_depend_on_its_batch(device):
    assert gpu_checks.batch_difference(device) == 0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("lora", [False, True])
def test_sampled_log_probabilities_are_the_scored_ones(device, dtype, bound, lora):
    assert gpu_checks.sampled_against_scored(device, dtype, lora=lora) < bound


def test_gradients_are_those_of_the_cpu(device):
    assert gpu_checks.gradient_difference(device) < 1e-4


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_uninterrupted_one(device):
    found = gpu_checks.resume_difference(device)
    # On a GPU, sums over rows are made in no fixed order, also in a run that is only repeated.
    assert found["resumed"] <= (0 if device == "cpu" else 1e-3)
