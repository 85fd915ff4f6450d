"""Models of a few words: each word has the log-probability that a table says."""

import pytest
import torch

from astra_rl import Exchange, Graph, Node
from astra_rl.testing import ScriptedModerator


class Models:
    """What a term may ask of a problem; `table` has the nats of words under the target."""

    samples_exactly = True

    def __init__(self, moderator=None, table=None, replies=()):
        self.moderator = moderator or ScriptedModerator({})
        self.table = table or {}
        self.replies = list(replies)
        self.asked = []

    def rollout_prompt_with_target(self, contexts):
        self.asked.append([str(each) for each in contexts])
        return [self.replies.pop(0) for _ in contexts]

    def get_attacker_logprobs(self, contexts, continuations):
        return self._rows(continuations, 0.5)

    def get_target_logprobs(self, contexts, continuations):
        return self._rows(continuations, 1.0)

    def get_baseline_logprobs(self, contexts, continuations):
        return self._rows(continuations, 2.0)

    def get_slot_logprobs(self, contexts, continuations):
        return self._rows(continuations, 3.0)

    def get_response_logprobs(self, contexts, responses):
        self.asked.append([str(each) for each in contexts])
        return self._rows(responses, 1.0)

    def _rows(self, texts, scale):
        rows = [[scale * self.table.get(word, -1.0) for word in text.split()] for text in texts]
        width = max(map(len, rows), default=0)
        return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows]).reshape(
            len(rows), width
        )


@pytest.fixture
def make_models():
    return Models


@pytest.fixture
def turns():
    """Turns that open one conversation; each attack is answered with its own text."""

    def make(*attacks, context="c"):
        return [Exchange(context, attack, f"r {attack}") for attack in attacks]

    return make


@pytest.fixture
def experience():
    """An experience in which these attacks were measured under a name, one episode each."""

    def make(name, *attacks, values=None):
        values = [1.0] * len(attacks) if values is None else values
        return [
            Graph("c", [Node("c", attack, "r", 0.0, reward_terms={name: value})])
            for attack, value in zip(attacks, values, strict=True)
        ]

    return make
