"""Speed of this library against a plain loop: rollout collection, DPO updates, and both.

    python benchmarks/collection_and_update.py [--repeats 5]

Same models, prompts, tree and lengths. The plain loop plays one episode per repetition and this
library sixteen in a batch, as each is designed; turns per second are compared. The plain loop uses
float32, the dtype of the checkpoint; this library is measured in its default precision and in
float32.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from common import Row, interleaved, median, save, spread
from plain_loop import PlainLoop, pairs

from astra_rl.algorithms import DPO
from astra_rl.algorithms.dpo import DPOStep
from astra_rl.core.seeding import episode_seeds
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.moderators import FunctionModerator
from astra_rl.training.precision import build_optimizer

MODEL = "bundled:smollm2-135m"
WIDTH, DEPTH, NEW_TOKENS, PROMPT_TOKENS = 2, 3, 32, 96
TURNS = sum(WIDTH**level for level in range(1, DEPTH + 1))
EPISODES = 16
UPDATE_PAIRS, BATCH = 16, 4

TOPICS = (
    "gardens", "railways", "baking", "weather", "libraries", "bicycles", "museums", "rivers",
    "chess", "lighthouses", "violins", "maps", "bridges", "tea", "clocks", "mountains",
)  # fmt: skip


def prompts() -> list[str]:
    tokenizer = load_tokenizer(MODEL)
    texts = []
    for topic in TOPICS:
        text = (
            f"{topic.capitalize()} have been a passion of mine for as long as I can remember. When "
            f"I was small, my aunt gave me a book about {topic}, and I read it until the pages "
            f"came loose. Later I wrote a diary of all I learned about {topic}: who first cared "
            "for them, what they cost, where the best ones are, and why people travel far to see "
            "them. Here is what I would tell anybody who is about to begin, and what I would have "
            "liked to be told myself on the day on which I began."
        )
        ids = tokenizer(text)["input_ids"][:PROMPT_TOKENS]
        texts.append(tokenizer.decode(ids))
    return texts


def problem(dtype: str, new_tokens: int = NEW_TOKENS, **options: Any) -> HFASTProblem:
    sampling = Sampling(max_new_tokens=new_tokens)
    return HFASTProblem(
        MODEL,
        MODEL,
        MODEL,
        FunctionModerator(lambda texts: [min(1.0, len(text) / 1000) for text in texts]),
        dtype=dtype,
        attacker_sampling=sampling,
        target_sampling=sampling,
        attacker_chat=False,
        target_chat=False,
        **options,
    )


def collector_of(
    dtype: str, texts: list[str], *, depth: int = DEPTH, new_tokens: int = NEW_TOKENS
) -> Callable[[int], Any]:
    """Return a function that collects this number of episodes, with new seeds at each call."""
    environment = ASTEnvironment(problem(dtype, new_tokens), texts, WIDTH, depth)
    seeds = itertools.count()
    return lambda episodes: environment.rollouts(episode_seeds(next(seeds), episodes))


def collector(dtype: str, texts: list[str]) -> Callable[[], Any]:
    play = collector_of(dtype, texts)
    return lambda: play(EPISODES)


def updater(dtype: str, found: list[tuple[str, str, str]]) -> Callable[[], Any]:
    ours = problem(dtype)
    algorithm = DPO(ours)
    parameters = list(ours.parameters())
    optimizer = build_optimizer(torch.optim.AdamW, parameters, 1e-6)

    def run() -> None:
        steps = algorithm.prepare([DPOStep(*pair) for pair in found])
        for start in range(0, len(steps), BATCH):
            loss, _ = algorithm.step(algorithm.collate_fn(steps[start : start + BATCH]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(
                [p for group in optimizer.param_groups for p in group["params"]], 1.0
            )
            optimizer.step()
            optimizer.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    texts = prompts()
    base = load_model(MODEL, dtype="float32")
    trained = copy.deepcopy(base).requires_grad_(True)
    loop = PlainLoop(trained, base, base, load_tokenizer(MODEL), WIDTH, DEPTH, NEW_TOKENS)
    found = list(itertools.islice(
        itertools.chain.from_iterable(pairs(loop.episode(text)) for text in texts), UPDATE_PAIRS
    ))  # fmt: skip
    plain_texts, plain_pairs = itertools.cycle(texts), itertools.cycle(found)
    plain_optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6)

    collecting = interleaved(
        {
            "plain": lambda: loop.episode(next(plain_texts)),
            "default": collector("auto", texts),
            "float32": collector("float32", texts),
        },
        repeats=repeats,
    )
    updating = interleaved(
        {
            "plain": lambda: [loop.update(plain_optimizer, next(plain_pairs)) for _ in range(2)],
            "default": updater("auto", found),
            "float32": updater("float32", found),
        },
        repeats=repeats,
    )
    turns = {name: TURNS * (1 if name == "plain" else EPISODES) for name in collecting}
    pair_counts = {name: 2 if name == "plain" else len(found) for name in updating}
    turn_rates = {name: turns[name] / median(times) for name, times in collecting.items()}
    pair_rates = {name: pair_counts[name] / median(times) for name, times in updating.items()}
    # An episode of this tree has one pair for each node with children.
    episode_pairs = (TURNS - WIDTH**DEPTH) + 1
    episodes = {
        name: 1 / (TURNS / turn_rates[name] + episode_pairs / pair_rates[name])
        for name in turn_rates
    }
    details = {
        "turns_per_second": {name: round(rate, 3) for name, rate in turn_rates.items()},
        "seconds": {name: spread(times) for name, times in collecting.items()},
    }
    pair_details = {
        "pairs_per_second": {name: round(rate, 3) for name, rate in pair_rates.items()},
        "seconds": {name: spread(times) for name, times in updating.items()},
    }

    def ratio(rates: dict[str, float], name: str) -> float:
        return rates[name] / rates["plain"]

    save(
        "collection_and_update",
        [
            Row("collection", ratio(turn_rates, "default"), 10, detail=details),
            Row("collection, float32", ratio(turn_rates, "float32"), 5, detail=details),
            Row("DPO update", ratio(pair_rates, "default"), 12, detail=pair_details),
            Row(
                "training step (collect and update)",
                ratio(episodes, "default"),
                16,
                detail={"episodes_per_second": {k: round(v, 4) for k, v in episodes.items()}},
            ),
        ],
    )


if __name__ == "__main__":
    main()
