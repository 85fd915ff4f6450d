"""Search by continuation: what else follows the words before a cause of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from astra_rl.bench.causes import causes
from astra_rl.bench.discovery import Call, caused
from astra_rl.bench.play import SUCCESS, Played
from astra_rl.core.text import Conversation

if TYPE_CHECKING:
    from astra_rl.ext.transformers.problem import ModelPair

AT_ONCE = 64
"""Calls between two counts of what succeeded."""


def continue_causes(search: Played, made: Sequence[Call], calls: int, seed: int = 0) -> list[Call]:
    """Call the target with other continuations of the attacks that a search found.

    The likeliest attack of each cause (`causes`) is cut after the first word of the pair. Each next
    word is then tried once, in the order of its probability under the untrained attacker, without
    those that the search sent; the untrained attacker writes the rest. Prefixes are drawn in
    proportion to ``(successes + 1) / (calls + 2)``. It is for attackers whose tokens are words.

    Args:
        search: An attacker of the search; its target is called.
        made: The calls of the search.
        calls: Most calls. Fewer are made if no continuation is left.
        seed: Seed of the draws.
    """
    target, random = search.target, Random(seed)
    attacker, judge = target.attacker(), target.judge()
    opening = target.openings[0]
    groups = causes(made)
    nll = search.nll(sorted(attack for group in groups.values() for attack in group))
    sent = {pair for call in made for pair in pairwise(str(call.attack).lower().split())}
    left: dict[str, tuple[str, list[str]]] = {}
    for (first, second), group in groups.items():
        if first not in left:
            words = min(group, key=nll.__getitem__).split()
            place = [each.lower() for each in words]
            cut = next(at for at, pair in enumerate(pairwise(place)) if pair == (first, second))
            prefix = " ".join(words[: cut + 1])
            following = _next_words(attacker, f"{opening} {prefix}")
            left[first] = prefix, [word for word in following if (first, word) not in sent]
    tried, succeeded = Counter[str](), Counter[str]()
    found: list[Call] = []
    while len(found) < calls:
        firsts = [first for first, (_, words) in left.items() if words]
        if not firsts:
            break
        weights = [(succeeded[first] + 1) / (tried[first] + 2) for first in firsts]
        drawn = random.choices(firsts, weights, k=min(AT_ONCE, calls - len(found)))
        chosen = [
            first for at, first in enumerate(drawn) if drawn[:at].count(first) < len(left[first][1])
        ]
        starts = [f"{left[first][0]} {left[first][1].pop(0)}" for first in chosen]
        attacks = _finished(
            attacker, opening, starts, target.attack_tokens, seed=random.getrandbits(32)
        )
        replies = target.respond([Conversation.of(opening) + attack for attack in attacks])
        scores = judge.moderate(replies)
        for first, attack, reply, score in zip(chosen, attacks, replies, scores, strict=True):
            tried[first] += 1
            succeeded[first] += score >= SUCCESS
            found.append(Call(caused(target, attack, reply), score >= SUCCESS, attack))
    return found


@torch.no_grad()
def _next_words(attacker: ModelPair, text: str) -> list[str]:
    """Return all words that can follow a text, likeliest first."""
    ids = attacker.tokenizer([text], add_special_tokens=False, return_tensors="pt")["input_ids"]
    order = attacker.model(input_ids=ids).logits[0, -1].argsort(descending=True).tolist()
    special = set(attacker.tokenizer.all_special_ids)
    words = attacker.tokenizer.batch_decode([[each] for each in order if each not in special])
    return [word.strip() for word in words]


@torch.no_grad()
def _finished(
    attacker: ModelPair, opening: str, starts: Sequence[str], tokens: int, *, seed: int
) -> list[str]:
    """Return attacks that begin with these words, finished by the attacker at temperature 1."""
    tokenizer = attacker.tokenizer
    model: Any = attacker.model
    encoded = [
        tokenizer(f"{opening} {start}", add_special_tokens=False)["input_ids"] for start in starts
    ]
    longest = max(map(len, encoded))
    pad = tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(each)) + each for each in encoded])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in encoded])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=tokens,
            pad_token_id=pad,
        )[:, longest:]
    rests = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    return [f"{start} {rest.strip()}".strip() for start, rest in zip(starts, rests, strict=True)]
