"""Tiny models whose answers depend on what they read, so that a wrong reading shows."""

import pytest
import torch

from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.testing import tiny_model


def sharpen(model, scale=0.15):
    """Give a random model weights large enough that each token it reads matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, scale, generator=generator)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def sharpened():
    return sharpen


def adapted(base):
    torch.manual_seed(0)
    model = make_trainable(base, lora=LoraOptions(rank=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return model


@pytest.fixture(scope="session")
def with_adapter():
    return adapted


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request):
    return sharpen(tiny_model(request.param).model)


@pytest.fixture(scope="session")
def llama():
    return sharpen(tiny_model("llama").model)


@pytest.fixture(scope="session")
def plain_logprobs():
    """Log-probabilities of a sequence's tokens from `start` on, by the model's own forward."""

    def score(model, sequence, start):
        logits = model(torch.tensor([list(sequence)])).logits[0].float()
        targets = torch.tensor(sequence[start:], dtype=torch.long)
        return logits.log_softmax(-1)[start - 1 : -1].gather(1, targets[:, None]).squeeze(1)

    return score
