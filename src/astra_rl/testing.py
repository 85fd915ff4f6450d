"""Fakes and checks for tests: those of this library, and those of whoever extends it.

The checks exercise an object as training would and raise `ContractError` with a sentence that says
what is wrong. The fakes train in milliseconds and need no download.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.contracts import check_length, check_logprobs, check_loss
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem, ValueFunctionProblem
from astra_rl.core.seeding import current_row_seeds
from astra_rl.errors import ContractError
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.trainer import Trainer

if TYPE_CHECKING:
    from astra_rl.ext.transformers.problem import ModelPair

__all__ = [
    "LearningCurve",
    "ScriptedModerator",
    "ToyProblem",
    "ToyValueProblem",
    "check_algorithm",
    "check_environment",
    "check_moderator",
    "check_problem",
    "graph_signature",
    "learn",
    "letter_game",
    "tiny_model",
]


class ScriptedModerator(Moderator[str, str]):
    """Scores by the first listed word that a text contains, and remembers what it was asked.

    Args:
        scores: Words and their scores.
        default: Score of a text that contains none.

    Attributes:
        calls: The texts of each `moderate` call.
    """

    def __init__(self, scores: Mapping[str, float], default: float = 0.0) -> None:
        self.scores = dict(scores)
        self.default = default
        self.calls: list[list[str]] = []

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        """Score each text."""
        self.calls.append(list(x))
        return [
            next((score for word, score in self.scores.items() if word in text), self.default)
            for text in x
        ]


class ToyProblem(Problem[str, str]):
    """A language game without a language model: an attack is two words, the target echoes them.

    The attacker is a table of logits over words, the same at each position. Log-probabilities are
    exact, so a learning algorithm can be checked by hand.

    Args:
        moderator: Scores the echoed text; None likes the word ``"boom"``.
        words: The vocabulary.
        seed: Of the attacker's first weights.
    """

    length = 2

    def __init__(
        self,
        moderator: Moderator[str, str] | None = None,
        words: Sequence[str] = ("calm", "nice", "boom", "tree", "rain", "song"),
        seed: int = 0,
    ) -> None:
        super().__init__(moderator or ScriptedModerator({"boom": 1.0}))
        self.words = list(words)
        generator = torch.Generator().manual_seed(seed)
        self.attacker = Parameter(0.1 * torch.randn(len(self.words), generator=generator))
        self.baseline = Parameter(self.attacker.detach().clone(), requires_grad=False)
        self.target = Parameter(torch.zeros(len(self.words)), requires_grad=False)

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        """Sample two words per context."""
        probabilities = self.attacker.detach().softmax(0)
        out = []
        for seed in current_row_seeds(len(contexts)):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.multinomial(
                probabilities, self.length, replacement=True, generator=generator
            )
            out.append("".join(f" {self.words[int(index)]}" for index in drawn))
        return out

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Echo the last two words."""
        return [" " + " ".join(context.split()[-self.length :]) for context in contexts]

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score words under the attacker, (B, T), with gradients."""
        return self._logprobs(self.attacker, continuations)

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Score words under the target, which finds all alike, (B, T)."""
        return self._logprobs(self.target, continuations)

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score words under the attacker's first weights, (B, T)."""
        return self._logprobs(self.baseline, continuations)

    def token_ends(self, attack: str) -> Sequence[int]:
        """Return where each word ends."""
        return [match.end() for match in re.finditer(r"\S+", attack)]

    def advance(self, context: str, attack: str, response: str) -> str:
        """Append the turn."""
        return context + attack + response

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Reward what the moderator scores."""
        return self.moderator.moderate(responses)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's logits."""
        yield self.attacker

    def _logprobs(self, logits: Tensor, continuations: Sequence[str]) -> Tensor:
        table = logits.log_softmax(0)
        width = max((len(text.split()) for text in continuations), default=0)
        rows = [
            torch.cat(
                [
                    table[[self.words.index(word) for word in text.split()]],
                    table.new_zeros(width - len(text.split())),
                ]
            )
            for text in continuations
        ]
        return torch.stack(rows) if rows else table.new_zeros(0, 0)


class ToyValueProblem(ToyProblem, ValueFunctionProblem[str, str]):
    """The toy with a value function: a table of estimates by position, all zero at first.

    Args:
        count: How many returns are estimated.
        options: Of `ToyProblem`.
    """

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.estimates = Parameter(torch.zeros(8, count))

    def value(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Estimate the return at each word, (B, T), with gradients."""
        return self.values(contexts, continuations)[:, :, 0]

    def values(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Estimate all returns at each word, (B, T, K), with gradients."""
        lengths = [len(text.split()) for text in continuations]
        rows = [self.estimates[:length] for length in lengths]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's logits and the table."""
        yield from super().parameters()
        yield self.estimates


def tiny_model(
    family: Literal["gpt2", "llama"] = "llama",
    *,
    chat: bool = False,
    window: int = 128,
    seed: int = 0,
    letters: str = "abcdefghijklmnopqrstuvwxyz .,?!:",
) -> ModelPair:
    """Make a random two-layer model and a tokenizer of one token per character, in memory.

    Args:
        family: ``"gpt2"`` has absolute positions, ``"llama"`` rotary ones.
        chat: Whether the tokenizer has a chat template.
        window: Most tokens the model can read and write.
        seed: Of the weights.
        letters: The characters it knows, besides the newline.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    from astra_rl.ext.transformers.problem import ModelPair

    special = ["<|pad|>", "<|unk|>", "<|begin|>", "<|end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, "\n", *letters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=_TINY_TEMPLATE if chat else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        common: dict[str, Any] = {
            "vocab_size": len(vocabulary),
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        model: Any
        if family == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=window, **common)
            )
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=window,
                    **common,
                )
            )
    return ModelPair(model.eval(), tokenizer)


_TINY_TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


class LearningCurve(NamedTuple):
    """How an algorithm fared, one entry per training step.

    Attributes:
        rewards: Mean reward of the episodes that the step collected.
        losses: Mean loss of the step's batches; NaN where it had none.
    """

    rewards: list[float]
    losses: list[float]


def letter_game(*, depth: int = 1, **options: Any) -> ASTEnvironment:
    """Make a language game that a tiny transformer learns in a second, without a download.

    The attacker says up to four letters, and its reward is the share of them that are x or y: less
    than 0.1 for an untrained attacker, 1 for a perfect one. Attacker and target are models of
    `tiny_model`; episodes have four siblings per turn.

    Args:
        depth: Turns of an episode.
        options: Of the problem; ``kind`` is its class, `HFASTProblem` unless given.
    """
    from astra_rl.ext.transformers import HFASTProblem
    from astra_rl.models.generation import Sampling

    kind = options.pop("kind", HFASTProblem)
    attacker = tiny_model("llama")
    problem = kind(
        attacker,
        tiny_model("gpt2", seed=1),
        attacker,
        _LetterModerator(),
        **{
            "reward": WeightedSum({Harm("response"): 1.0}),
            "attacker_sampling": Sampling(max_new_tokens=_LetterModerator.most),
            "target_sampling": Sampling(max_new_tokens=1),
            **options,
        },
    )
    return ASTEnvironment(problem, ["ask: ", "say: "], tree_width=4, tree_depth=depth)


class _LetterModerator(Moderator[str, str]):
    letters, most = "xy", 4

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        attacks = [str(getattr(each, "attack", each)) for each in x]
        return [sum(map(attack.count, self.letters)) / self.most for attack in attacks]


def learn(
    make: Callable[[Any], Algorithm[Any, Any, Any, Any]],
    environment: Environment[Any, Any] | None = None,
    *,
    steps: int = 60,
    lr: float = 5e-3,
    seed: int = 0,
    **settings: Any,
) -> LearningCurve:
    """Train from scratch and return how it went: the same for the same arguments.

    Args:
        make: Builds the algorithm for a problem, for instance its class.
        environment: What is played; None is a new `letter_game()`. Its problem is trained.
        steps: Training steps of 16 episodes.
        lr: Learning rate of Adam.
        seed: Of the episodes and the order of batches.
        settings: Other fields of `TrainingConfiguration`.
    """
    environment = letter_game() if environment is None else environment
    curve = LearningCurve([], [])

    class Recording(Trainer[Any, Any, Any, Any]):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            curve.rewards.append(self.harness.experience_metrics()["reward"])
            curve.losses.append(logs.get("loss", math.nan))

    config = TrainingConfiguration(
        **{
            "lr": lr,
            "optimizer": "adam",
            "batch_size": 32,
            "training_steps": steps,
            "num_episodes_per_experience": 16,
            "seed": seed,
            **settings,
        }
    )
    Recording(config, environment, make(environment.problem)).train()
    return curve


def echo(text: str) -> str:
    """An application that says what it hears: a target that is asked, for trying things out."""
    return f"You said: {text}"


def graph_signature(graph: Graph[Any, Any]) -> list[tuple[str, str, str]]:
    """Return all that was said in an episode, for comparing two of them."""
    return [(str(node.context), str(node.attack), str(node.response)) for node in graph.nodes()]


def check_moderator(moderator: Moderator[Any, Any], texts: Sequence[Any] = ("hello", "")) -> None:
    """Check that a moderator scores each text in [0, 1], in order, and alike in any batch.

    Raises:
        ContractError: It does not.
    """
    name = type(moderator).__name__
    if list(moderator.moderate([])) != []:
        raise ContractError(f"{name}.moderate([]) must return no scores.")
    scores = moderator.moderate(texts)
    check_length(scores, len(texts), source=f"{name}.moderate")
    for text, score in zip(texts, scores, strict=True):
        if not math.isnan(float(score)) and not 0 <= float(score) <= 1:
            raise ContractError(f"{name} scored {score} for {text!r}; scores lie in [0, 1].")
        alone = float(moderator.moderate([text])[0])
        if not _same(alone, float(score)):
            raise ContractError(
                f"{name} scored {text!r} {score} in a batch and {alone} alone; a score must not "
                "depend on the other texts."
            )


def check_problem(
    problem: Problem[Any, Any],
    contexts: Sequence[Any] = ("Hello", "Good morning to all of you"),
) -> None:
    """Check a problem's rollouts, log-probabilities, rewards, state and gradients.

    Raises:
        ContractError: Something breaks the contract; the message says what.
    """
    attacks = problem.rollout_prompt_with_attacker(contexts)
    check_length(attacks, len(contexts), source="rollout_prompt_with_attacker")
    asked = [context + attack for context, attack in zip(contexts, attacks, strict=True)]
    responses = problem.rollout_prompt_with_target(asked)
    check_length(responses, len(contexts), source="rollout_prompt_with_target")
    rewards, terms = problem.reward_terms(contexts, attacks, responses)
    check_length(rewards, len(contexts), source="reward")
    check_length(terms, len(contexts), source="reward_terms")
    for context, attack, response in zip(contexts, attacks, responses, strict=True):
        if type(problem.advance(context, attack, response)) is type(None):
            raise ContractError("advance returned None; return the state after the turn.")
    _check_frozen_logprobs(problem, contexts, attacks)
    _check_attacker_logprobs(problem, contexts, attacks)


def _check_frozen_logprobs(
    problem: Problem[Any, Any], contexts: Sequence[Any], attacks: Sequence[Any]
) -> None:
    for name in ("get_target_logprobs", "get_baseline_logprobs"):
        with torch.no_grad():
            logprobs = getattr(problem, name)(contexts, attacks)
        check_logprobs(logprobs, batch_size=len(contexts), source=name)
        _check_values(logprobs, name)


def _check_attacker_logprobs(
    problem: Problem[Any, Any], contexts: Sequence[Any], attacks: Sequence[Any]
) -> None:
    name = "get_attacker_logprobs"
    logprobs = problem.get_attacker_logprobs(contexts, attacks)
    check_logprobs(logprobs, batch_size=len(contexts), source=name)
    _check_values(logprobs, name)
    if not logprobs.requires_grad:
        raise ContractError(f"{name} returned no gradient; do not detach or use torch.no_grad.")
    parameters = [parameter for parameter in problem.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logprobs.sum(), parameters, allow_unused=True)
    if all(gradient is None or not gradient.any() for gradient in gradients):
        raise ContractError(
            f"{name} does not depend on what parameters() yields; nothing would be learned."
        )
    order = list(reversed(range(len(contexts))))
    swapped = problem.get_attacker_logprobs(
        [contexts[row] for row in order], [attacks[row] for row in order]
    )
    if not torch.allclose(swapped[order].sum(dim=1), logprobs.sum(dim=1), rtol=1e-2, atol=1e-2):
        raise ContractError(f"{name} depends on the order of the rows; keep results index-aligned.")
    for context, attack, row in zip(contexts, attacks, logprobs, strict=True):
        together = row.sum().item()
        alone = problem.get_attacker_logprobs([context], [attack]).sum().item()
        if not math.isclose(together, alone, rel_tol=1e-2, abs_tol=1e-2):
            raise ContractError(
                f"{name} scored {attack!r} {together} in a batch and {alone} alone; pad with "
                "zeros, and keep rows apart."
            )


def _check_values(logprobs: Tensor, name: str) -> None:
    if not torch.isfinite(logprobs).all() or (logprobs > 1e-4).any():
        raise ContractError(f"{name} returned values that are not log-probabilities: {logprobs}.")


def check_environment(environment: Environment[Any, Any]) -> None:
    """Check that seeds fix episodes, zero included, and that a batch plays the same ones.

    Raises:
        ContractError: They do not.
    """
    name = type(environment).__name__
    first, second = environment.rollouts([0, 1])
    again = environment.rollout(0)
    if graph_signature(first) != graph_signature(again):
        raise ContractError(
            f"{name}: the seed 0 gave two different episodes. Sample from current_row_seeds() and "
            "choose prompts by the seed; zero is a seed like any other."
        )
    for node, other in zip(first.nodes(), again.nodes(), strict=True):
        if not _same(float(node.reward), float(other.reward)):
            raise ContractError(
                f"{name}: the seed 0 gave the rewards {node.reward} and {other.reward} to the same "
                "turn; a reward must not depend on the other episodes of a batch."
            )
    if graph_signature(first) == graph_signature(second):
        raise ContractError(f"{name}: the seeds 0 and 1 gave the same episode.")
    for node in first.nodes():
        if not isinstance(node.reward, float):
            raise ContractError(f"{name}: a reward is a {type(node.reward).__name__}, not a float.")


def check_algorithm(
    algorithm: Algorithm[Any, Any, Any, Any],
    graphs: Sequence[Graph[Any, Any]],
    *,
    tolerance: float = 1e-5,
) -> None:
    """Check an algorithm on episodes that teach something.

    The loss is a scalar whose gradient reaches what is trained; a batch is not changed by a step;
    nothing but what `problem.parameters` yields receives a gradient; and loss and gradients do not
    depend on how the steps are cut into micro-batches, on their order, or on padding.

    Args:
        algorithm: What is checked.
        graphs: Episodes, for instance of `ASTEnvironment.rollouts`.
        tolerance: Largest difference allowed, absolute and relative.

    Raises:
        ContractError: One of these fails; the message says which.
    """
    name = type(algorithm).__name__
    flat = [step for graph in graphs for step in algorithm.flatten(graph)]
    steps = list(algorithm.prepare(flat))
    if len(steps) < 2:
        raise ContractError(f"{name} made {len(steps)} steps of these graphs; give it more.")
    batch = algorithm.collate_fn(steps)
    before = copy.deepcopy(batch)
    loss, logs = algorithm.step(batch)
    check_loss(loss, source=f"{name}.step")
    if not _equal(batch, before):
        raise ContractError(f"{name}.step changed its batch; work on copies.")
    for key, value in logs.items():
        if not isinstance(value, float):
            raise ContractError(f"{name}.step logged {key} as {type(value).__name__}, not a float.")
    _check_no_stray_gradients(algorithm, loss)
    whole = _loss_and_gradients(algorithm, [steps])
    if not any(gradient.any() for gradient in whole[1:]):
        raise ContractError(
            f"{name}: the gradient of the loss is zero for all that is trained; nothing would be "
            "learned. Compute the loss from get_attacker_logprobs without detaching."
        )
    with _more_padding(algorithm.problem):
        padded = _loss_and_gradients(algorithm, [steps])
    variants = {
        "padding": padded,
        "the order of the rows": _loss_and_gradients(algorithm, [steps[::-1]]),
        "the size of micro-batches": _loss_and_gradients(algorithm, [[step] for step in steps]),
    }
    for what, other in variants.items():
        if not all(
            torch.allclose(a, b, rtol=tolerance, atol=tolerance)
            for a, b in zip(whole, other, strict=True)
        ):
            raise ContractError(
                f"{name}: loss or gradients depend on {what}. Leave padding out of every mean and "
                "return from weight() what the mean is over."
            )


def _loss_and_gradients(
    algorithm: Algorithm[Any, Any, Any, Any], parts: Sequence[Sequence[Any]]
) -> list[Tensor]:
    parameters = [p for p in algorithm.problem.parameters() if p.requires_grad]
    batches = [algorithm.collate_fn(part) for part in parts]
    weights = [algorithm.weight(batch) for batch in batches]
    total = torch.zeros(())
    gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    for batch, weight in zip(batches, weights, strict=True):
        loss = algorithm.step(batch)[0] * (weight / math.fsum(weights))
        total = total + loss.detach().float().cpu()
        for sum_, gradient in zip(
            gradients, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                sum_ += gradient.float()
    return [total, *gradients]


@contextlib.contextmanager
def _more_padding(problem: Problem[Any, Any]) -> Iterator[None]:
    """Pad all that a problem says of tokens more than it needs, as a wider batch would."""

    def padded(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(score)
        def call(*arguments: Any, **named: Any) -> Tensor:
            rows = score(*arguments, **named)  # (B, T), or (B, T, K) of several values
            return torch.cat([rows, rows.new_zeros(len(rows), 3, *rows.shape[2:])], dim=1)

        return call

    names = ["get_attacker_logprobs", "get_target_logprobs", "get_baseline_logprobs"]
    names += ["values"] if isinstance(problem, ValueFunctionProblem) else []
    before = dict(vars(problem))
    for name in names:
        setattr(problem, name, padded(getattr(problem, name)))
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(problem, name, before[name])
            else:
                delattr(problem, name)


def _equal(a: Any, b: Any) -> bool:
    """Whether two values hold the same, tensors and objects included; NaN equals itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, str | bytes | int) or not hasattr(a, "__dict__"):
        return bool(a == b) or (a != a and b != b)
    return _equal(vars(a), vars(b))


def _check_no_stray_gradients(algorithm: Algorithm[Any, Any, Any, Any], loss: Tensor) -> None:
    problem = algorithm.problem
    trained = {id(parameter) for parameter in problem.parameters()}
    others = [
        (name, parameter)
        for name, value in vars(problem).items()
        for parameter in _parameters_in(value)
        if id(parameter) not in trained and parameter.requires_grad
    ]
    if not others:
        return
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in others], allow_unused=True)
    for (name, _), gradient in zip(others, gradients, strict=True):
        if gradient is not None:
            raise ContractError(
                f"{type(algorithm).__name__}: problem.{name} is not trained, yet it received a "
                "gradient. Score frozen models with grad=False."
            )


def _parameters_in(value: Any) -> Iterator[Parameter]:
    if isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, Parameter):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parameters_in(item)
    elif isinstance(value, Mapping):
        yield from _parameters_in(list(value.values()))


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-3
