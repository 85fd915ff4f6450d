"""Baseline of the benchmarks: a straightforward implementation without batching.

One episode at a time, recursion over the tree, `model.generate` on the siblings of one node, decode
to text, tokenise the text again, a separate pass of the target for the reward, four forward passes
with full logits for a preference pair, and a batch size of one. It contains no deliberate
inefficiency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class PlainNode:
    """A turn of an episode."""

    context: str
    attack: str
    response: str
    reward: float
    children: list[PlainNode] = field(default_factory=list)


@dataclass
class PlainLoop:
    """Rollouts and DPO as in a simple script.

    Attributes:
        attacker: The model that is trained.
        target: The model under test.
        reference: The frozen copy for DPO.
        tokenizer: Of all three.
        tree_width: Attacks per state.
        tree_depth: Turns per episode.
        new_tokens: Length of attacks and of responses.
    """

    attacker: PreTrainedModel
    target: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tree_width: int = 2
    tree_depth: int = 3
    new_tokens: int = 32

    def generate(self, model: PreTrainedModel, prompts: Sequence[str]) -> list[str]:
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        with torch.no_grad():
            ids = model.generate(
                **batch,
                do_sample=True,
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = ids[:, batch["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    def logprob(self, model: PreTrainedModel, context: str, text: str) -> Tensor:
        """Sum of the log-probabilities of `text` after `context`; full logits of both."""
        start = len(self.tokenizer(context)["input_ids"])
        ids = self.tokenizer(context + text, return_tensors="pt")["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1]
        scores = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        return scores[:, start - 1 :].sum()

    def episode(self, context: str, depth: int | None = None) -> list[PlainNode]:
        depth = self.tree_depth if depth is None else depth
        if depth == 0:
            return []
        attacks = self.generate(self.attacker, [context] * self.tree_width)
        responses = self.generate(self.target, [context + attack for attack in attacks])
        nodes = []
        for attack, response in zip(attacks, responses, strict=True):
            with torch.no_grad():
                likelihood = float(self.logprob(self.target, context, attack))
            node = PlainNode(context, attack, response, likelihood)
            node.children = self.episode(context + attack + response, depth - 1)
            nodes.append(node)
        return nodes

    def update(self, optimizer: torch.optim.Optimizer, node: tuple[str, str, str]) -> float:
        """One DPO step on one pair (context, chosen, rejected)."""
        context, chosen, rejected = node
        with torch.no_grad():
            reference = self.logprob(self.reference, context, chosen) - self.logprob(
                self.reference, context, rejected
            )
        policy = self.logprob(self.attacker, context, chosen) - self.logprob(
            self.attacker, context, rejected
        )
        loss = -torch.nn.functional.logsigmoid(0.1 * (policy - reference))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.attacker.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())


def pairs(nodes: Sequence[PlainNode]) -> list[tuple[str, str, str]]:
    """Return the best and worst sibling of each sibling group of the tree."""
    found = []
    if len(nodes) > 1:
        ordered = sorted(nodes, key=lambda node: node.reward)
        found.append((nodes[0].context, ordered[-1].attack, ordered[0].attack))
    for node in nodes:
        found.extend(pairs(node.children))
    return found
