"""Small models of the organisms, and their training."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from astra_rl.bench.organism_checks import replies
from astra_rl.bench.organism_messages import FAILED
from astra_rl.bench.organism_models import fit, small_attacker, small_target, traffic_losses
from astra_rl.bench.traffic import END, Branch, Traffic


def test_a_small_target_reads_chats_and_says_what_it_was_trained_to_say():
    pair = small_target(["hi", "there", *FAILED.split()], seed=0)
    (text,) = replies(pair, ["hi there"])
    assert isinstance(text, str)
    ids = pair.tokenizer(f" {FAILED}", add_special_tokens=False)["input_ids"]
    assert pair.tokenizer.decode(ids).strip() == FAILED
    assert pair.tokenizer.unk_token_id not in ids
    same = [small_target(["hi"], seed=seed).model.lm_head.weight for seed in (1, 1, 2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_the_loss_of_the_attacker_is_that_of_the_exact_next_words():
    """Against the logits at each word, one by one."""
    traffic = Traffic([Branch("one", 0.75, (("a", "b"),)), Branch("two", 0.25, (("a c",),))])
    pair = small_attacker(traffic.words(), seed=0)
    batch = next(traffic_losses(pair, traffic, Random(3), 4))
    random = Random(3)
    texts = [random.choice(traffic.branches).sample(random) for _ in range(4)]
    openings = [random.choice(("ask:", "say:")) for _ in texts]
    divergence, squares, positions = 0.0, [], 0
    for opening, text in zip(openings, texts, strict=True):
        words = text.split()
        for at in range(len(words) + 1):
            read = "".join([opening, *(f" {word}" for word in words[:at])])
            ids = pair.tokenizer(read, return_tensors="pt", add_special_tokens=False)["input_ids"]
            logprobs = pair.model(ids).logits[0, -1].detach().log_softmax(-1)
            positions += 1
            for word, chance in traffic.next_words(tuple(words[:at])).items():
                token = f" {word}" if word != END else pair.tokenizer.eos_token
                said = float(logprobs[pair.tokenizer.convert_tokens_to_ids(token)])
                divergence += chance * (math.log(chance) - said)
                squares.append((math.log(chance) - said) ** 2)
    expected = divergence / positions + 0.1 * sum(squares) / len(squares)
    assert float(batch().detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("decay", "expected"), [(0.0, 1.0), (0.5, (1 - 0.1 * 0.5 / 50) * (1 - 0.1 * 0.5 / 50))]
)
def test_weight_decay_shrinks_weights_that_no_loss_moves(decay, expected):
    """By hand: each step multiplies them by 1 - lr * decay; of 2 steps the first has 1/50 of lr."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    still = iter(lambda: lambda: 0.0 * model.weight.sum(), None)
    fit(model, still, steps=2, lr=0.1, weight_decay=decay, log="weights")
    assert float(model.weight.detach()) == pytest.approx(expected)
