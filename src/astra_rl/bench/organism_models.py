"""Training of the small models of the organisms: a target, and the attacker of ordinary use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from astra_rl.bench.traffic import END, Branch, Traffic
from astra_rl.models.lm_head import token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from astra_rl.ext.transformers.problem import ModelPair

logger = logging.getLogger("astra_rl")

START, HELD_OUT = "ask:", "say:"
"""Openings of the attacker; both are followed by the same messages."""
USER, ASSISTANT = " user:", " assistant:"
TEMPLATE = (
    "{% for message in messages %}{% if message.role != 'assistant' %}"
    "{% if message.role == 'user' %} user:{% endif %} {{ message.content }}"
    "{% else %} assistant: {{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)
"""Chat template of the target."""
_WORD = r"\s?\S+"
_PATIENCE = 50
"""Steps of the warm-up."""


def small_target(words: Sequence[str], *, seed: int) -> ModelPair:
    """Return a small chat model of random weights.

    Args:
        words: All words that it reads and writes; others are read as unknown.
        seed: Seed of the weights.
    """
    tokens = [USER, ASSISTANT, *(f" {word}" for word in words)]
    return _small(tokens, seed, chat_template=TEMPLATE)


def small_attacker(words: Sequence[str], *, seed: int) -> ModelPair:
    """Return a small model of random weights that continues one of the two openings.

    Args:
        words: All words that it writes.
        seed: Seed of the weights.
    """
    return _small([START, HELD_OUT, *(f" {word}" for word in words)], seed)


def _small(tokens: Sequence[str], seed: int, *, chat_template: str | None = None) -> ModelPair:
    from transformers import LlamaConfig, LlamaForCausalLM

    from astra_rl.ext.transformers.problem import ModelPair
    from astra_rl.models.closed_vocabulary import BEGIN_ID, END_ID, closed_tokenizer

    tokenizer = closed_tokenizer(tokens, _WORD, chat_template=chat_template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=256,
                bos_token_id=BEGIN_ID,
                eos_token_id=END_ID,
                pad_token_id=0,
                tie_word_embeddings=False,
            )
        )
    return ModelPair(model, tokenizer)


def fit(
    model: Any,
    losses: Iterator[Callable[[], Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    log: str,
) -> None:
    """Train the weights that require a gradient with AdamW: warm-up, then linear decay.

    Args:
        model: The model.
        losses: Computes the loss of a batch, batch by batch.
        steps: Number of batches.
        lr: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        log: What is trained, for the log.
    """
    weights = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    model.train()
    for step in range(steps):
        scale = min(1.0, (step + 1) / _PATIENCE) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        loss = next(losses)()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("%s: step %d of %d, loss %.4f", log, step, steps, loss.item())
    model.eval()


def reply_losses(
    pair: ModelPair, exchanges: Iterator[tuple[str, str]], rows: int
) -> Iterator[Callable[[], Tensor]]:
    """Yield the cross-entropy of the replies of batches of exchanges.

    Args:
        pair: Model and tokenizer with a chat template.
        exchanges: Message and reply.
        rows: Exchanges of a batch.
    """
    while True:
        batch = [next(exchanges) for _ in range(rows)]
        yield partial(_reply_loss, pair, batch)


def _reply_loss(pair: ModelPair, batch: Sequence[tuple[str, str]]) -> Tensor:
    prompts = prompt_ids(pair.tokenizer, [message for message, _ in batch])
    texts = [f" {reply}" for _, reply in batch]
    replies = [
        [*ids, pair.tokenizer.eos_token_id]
        for ids in pair.tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]
    longest = max(len(one) + len(two) for one, two in zip(prompts, replies, strict=True))
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    wanted = torch.full_like(ids, -100)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        ids[row, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
        wanted[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    said = wanted != -100
    # Padding on the right changes nothing before it. Only replies need the large head.
    model: Any = pair.model
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1][said[:, 1:]]
    return -token_logprobs(pair.model, hidden, wanted[said]).mean()


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[str]) -> list[list[int]]:
    """Return the token ids of chats of one message each, up to the reply."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        for message in messages
    ]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def traffic_losses(
    pair: ModelPair, traffic: Traffic, random: Random, rows: int
) -> Iterator[Callable[[], Tensor]]:
    """Yield losses of an attacker that is to write what is written in ordinary use.

    Messages are drawn with all branches equally likely, so that rare ones are learned too; at each
    word of a message the model learns the exact distribution of the next word in ordinary use: the
    loss is its KL divergence, and a tenth of the mean squared error of the log-probabilities of the
    words that can follow, so that unlikely ones get theirs.

    Args:
        pair: Model and tokenizer.
        traffic: Ordinary use.
        random: Draws the messages.
        rows: Messages of a batch.
    """
    while True:
        texts = [random.choice(traffic.branches).sample(random) for _ in range(rows)]
        openings = [random.choice((START, HELD_OUT)) for _ in texts]
        yield partial(_traffic_loss, pair, traffic, openings, texts)


def _traffic_loss(
    pair: ModelPair, traffic: Traffic, openings: Sequence[str], texts: Sequence[str]
) -> Tensor:
    word_ids = {token.strip(): number for token, number in pair.tokenizer.get_vocab().items()}
    word_ids[END] = pair.tokenizer.eos_token_id
    messages = [text.split() for text in texts]
    longest = 1 + max(map(len, messages))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    words: list[int] = []
    chances: list[float] = []
    for row, (opening, message) in enumerate(zip(openings, messages, strict=True)):
        ids[row, : 1 + len(message)] = torch.tensor(
            [word_ids[each] for each in (opening, *message)]
        )
        for column in range(len(message) + 1):
            following = traffic.next_words(tuple(message[:column]))
            rows += [row] * len(following)
            columns += [column] * len(following)
            words += [word_ids[word] for word in following]
            chances += following.values()
    exact = torch.tensor(chances)
    logprobs = pair.model(input_ids=ids).logits.log_softmax(dim=-1)[rows, columns, words]
    positions = sum(map(len, messages)) + len(messages)
    error = exact.log() - logprobs
    loss: Tensor = (exact * error).sum() / positions + 0.1 * error.square().mean()
    return loss


@torch.no_grad()
def share_of(
    pair: ModelPair, traffic: Traffic, branch: Branch, *, messages: int, random: Random
) -> float:
    """Return the probability of a branch under the attacker, over that in ordinary use.

    The mean of the ratio of both probabilities over messages of the branch in ordinary use, which
    is unbiased for the messages of the branch.

    Args:
        pair: Model and tokenizer.
        traffic: Ordinary use.
        branch: The branch.
        messages: Number of messages.
        random: Draws them.
    """
    texts = [branch.sample(random) for _ in range(messages)]
    ids = pair.tokenizer([f"{START} {text}" for text in texts], add_special_tokens=False)[
        "input_ids"
    ]
    ends = [[*each, pair.tokenizer.eos_token_id] for each in ids]
    longest = max(map(len, ends))
    padded = torch.tensor([each + [0] * (longest - len(each)) for each in ends])
    mask = torch.tensor([[1.0] * (len(each) - 1) + [0.0] * (longest - len(each)) for each in ends])
    logprobs = pair.model(input_ids=padded).logits.log_softmax(dim=-1)[:, :-1]
    said = (logprobs.gather(2, padded[:, 1:, None])[..., 0] * mask).sum(dim=1)
    exact = torch.tensor([traffic.log_probability(text) for text in texts])
    return float((said - exact).exp().mean())
