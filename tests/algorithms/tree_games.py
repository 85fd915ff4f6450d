"""Games of two words over whole conversations, whose expected return is enumerated in float64.

The oracle sums over conversations and differentiates the sum; it knows nothing of trees.
"""

import math
from collections import Counter
from itertools import combinations_with_replacement, product

import torch
from torch.nn.parameter import Parameter

from astra_rl import Graph, Node
from astra_rl.testing import ToyValueProblem

WORDS = "ab"
ROOT = "."


class Game:
    """A policy table over (history, word) and rewards that depend on the whole history.

    Args:
        depth: Maximum number of turns.
        ended: Histories after which a conversation is over.
        rewards: Reward of a history, that of its last turn.
    """

    def __init__(self, depth, ended=(), rewards=None):
        self.depth, self.ended = depth, set(ended)
        self.histories = [ROOT + "".join(h) for d in range(depth) for h in product(WORDS, repeat=d)]
        self.rewards = rewards or _irregular

    def is_last(self, history):
        return history in self.ended or len(history) > self.depth

    def policy(self, logits):
        return logits.log_softmax(-1)

    def conversations(self, history=ROOT):
        """Yield every whole conversation."""
        for word in WORDS:
            longer = history + word
            if self.is_last(longer):
                yield longer
            else:
                yield from self.conversations(longer)

    def probability(self, policy, conversation):
        turns = [(conversation[:n], conversation[n]) for n in range(1, len(conversation))]
        return sum(
            policy[self.histories.index(state), WORDS.index(word)] for state, word in turns
        ).exp()

    def prefixes(self, conversation):
        return [conversation[: n + 1] for n in range(1, len(conversation))]

    def expected(self, logits, value):
        """Expectation over conversations of a function of one, differentiable in the logits."""
        policy = self.policy(logits.double())
        return sum(self.probability(policy, each) * value(each) for each in self.conversations())

    def gradient(self, logits):
        """Gradient of the expected return of a conversation."""
        leaf = logits.detach().double().requires_grad_()
        total = self.expected(leaf, lambda each: sum(map(self.rewards, self.prefixes(each))))
        return torch.autograd.grad(total, leaf)[0]

    def length(self, logits):
        """Expected number of turns of a conversation."""
        return float(self.expected(logits, lambda each: len(each) - 1))

    def graph(self, children):
        """Graph of the first turns ``(word, children)``."""
        return Graph(ROOT, [self._node(ROOT, *each) for each in children])

    def _node(self, history, word, children, truncated=False, chance=None):
        below = [self._node(history + word, *each) for each in children]
        return Node(
            history,
            word,
            "",
            self.rewards(history + word),
            below,
            truncated=truncated,
            continuation_probability=chance,
        )

    def trees(self, width, policy, history=ROOT):
        """Yield (probability, children) of all trees, trees equal up to order counted once."""
        subtrees = []
        for word in WORDS:
            chance = float(policy[self.histories.index(history), WORDS.index(word)].exp())
            longer = history + word
            below = [(1.0, ())] if self.is_last(longer) else self.trees(width, policy, longer)
            subtrees += [(chance * each, (word, children)) for each, children in below]
        return [
            (
                math.prod(subtrees[index][0] for index in chosen) * _orders(chosen),
                tuple(subtrees[index][1] for index in chosen),
            )
            for chosen in combinations_with_replacement(range(len(subtrees)), width)
        ]

    def ordered_trees(self, width, history=ROOT):
        """Return all trees, in every order: equally likely in a full game and a uniform policy."""
        subtrees = []
        for word in WORDS:
            longer = history + word
            below = [()] if self.is_last(longer) else self.ordered_trees(width, longer)
            subtrees += [(word, children) for children in below]
        return list(product(subtrees, repeat=width))

    def chains(self, width, policy, history=ROOT):
        """Yield (probability, children) of all trees in which one sibling, drawn, is continued."""
        row = policy[self.histories.index(history)].exp().tolist()
        for words in product(WORDS, repeat=width):
            chance = math.prod(row[WORDS.index(word)] for word in words)
            open_ = [n for n, word in enumerate(words) if not self.is_last(history + word)]
            share = 1 / len(open_) if len(open_) > 1 else None
            if not open_:
                yield chance, tuple((word, ()) for word in words)
            for drawn in open_:
                for each, below in self.chains(width, policy, history + words[drawn]):
                    yield (
                        chance * each / len(open_),
                        tuple(
                            (
                                word,
                                below if n == drawn else (),
                                n in open_ and n != drawn,
                                share if n in open_ else None,
                            )
                            for n, word in enumerate(words)
                        ),
                    )

    def sample(self, width, policy, generator, history=ROOT):
        """Sample the children of one tree."""
        row = policy[self.histories.index(history)].exp()
        drawn = torch.multinomial(row, width, replacement=True, generator=generator).tolist()
        return tuple(
            (
                WORDS[each],
                ()
                if self.is_last(history + WORDS[each])
                else self.sample(width, policy, generator, history + WORDS[each]),
            )
            for each in drawn
        )


class TableProblem(ToyValueProblem):
    """The policy and a value function as tables over histories."""

    def __init__(self, game, logits, values=None):
        super().__init__()
        self.game = game
        self.attacker = Parameter(logits.clone().float())
        self.baseline = Parameter(logits.clone().float(), requires_grad=False)
        start = torch.zeros(len(game.histories)) if values is None else values
        self.estimates = Parameter(start.clone().float())

    def get_attacker_logprobs(self, contexts, continuations):
        return self._rows(self.attacker, contexts, continuations)

    def get_baseline_logprobs(self, contexts, continuations):
        return self._rows(self.baseline, contexts, continuations)

    def values(self, contexts, continuations):
        return self.estimates[self._states(contexts)][:, None, None]

    def _states(self, contexts):
        return [self.game.histories.index(str(context)) for context in contexts]

    def _rows(self, table, contexts, continuations):
        words = [WORDS.index(str(each)) for each in continuations]
        return self.game.policy(table)[self._states(contexts), words][:, None]


def walk_weights(graph):
    """Probability that a uniform random walk visits each node, breadth first, by recursion."""
    found = {}

    def visit(children, chance):
        for child in children:
            found[id(child)] = chance / len(children)
            visit(child.children, chance / len(children))

    visit(graph.children, 1.0)
    return [found[id(node)] for node in graph.nodes()]


def random_logits(game, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(game.histories), len(WORDS), generator=generator)


def _irregular(history):
    """A fixed number in [-1, 1) for each history."""
    number = 0
    for letter in history:
        number = (number * 31 + ord(letter)) % 1009
    return (number * 617 % 1009) / 504.5 - 1


def _orders(chosen):
    ways = math.factorial(len(chosen))
    for count in Counter(chosen).values():
        ways //= math.factorial(count)
    return ways
