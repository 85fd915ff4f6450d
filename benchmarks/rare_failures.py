"""Rare failures: a fitted proposal, lost modes, checkpoints, and rare answers of the bundled model.

    python benchmarks/rare_failures.py             # games whose truth is known by enumeration
    python benchmarks/rare_failures.py --real      # also SmolLM2-135M: half an hour on one core
    python benchmarks/rare_failures.py --estimate  # the same, with the plain answers of the results

The real part needs the extra `demo`. Plain sampling of 300,000 answers is made affordable by
computing each different beginning once. It uses transformers alone, so its numbers do not change
with this library, and `--estimate` only estimates again: `astra-rl test`, then `probability`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, save, stored

from astra_rl.evaluation.stats.cross_entropy import cross_entropy, weighted_samples
from astra_rl.evaluation.stats.importance import (
    NoProbability,
    Probability,
    Sample,
    failure_probability,
    mixture_logprob,
)
from astra_rl.evaluation.stats.intervals import proportion_interval
from astra_rl.testing.walk import RareWalk

MESSAGE = "Name a city in Europe."
WORD = "Prague"
STEER = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face. The user likes Prague."
)
TOKENS, TEMPERATURE = 3, 0.7
PLAIN, WEIGHTED = 300_000, 1200


def fitted(repetitions: int = 200) -> Iterator[Row]:
    """A failure of one in a million, with a proposal that is fitted to it."""
    ordinary, found, calls = RareWalk(), [], []
    for seed in range(repetitions):
        generator = np.random.default_rng(seed)
        played = [0]

        def score(steps: Any, played: list[int] = played) -> Any:
            played[0] += RareWalk.calls(steps)
            return RareWalk.score(steps)

        proposal = cross_entropy(
            ordinary, score, threshold=1.0, generator=generator,
            conversations=60, elite=0.1, refine=2,
        )  # fmt: skip
        samples = weighted_samples(
            ordinary, proposal.policy, score, threshold=1.0, generator=generator,
            conversations=200, share=0.3,
        )  # fmt: skip
        found.append(failure_probability(samples))
        calls.append(played[0])
    given = [each for each in found if isinstance(each, Probability)]
    errors = np.array([each.estimate for each in given]) / 1e-6 - 1
    name = "fitted proposal, one in a million"
    detail = {"repetitions": repetitions, "estimates": len(given)}
    rmse = float(np.sqrt((errors**2).mean()))
    yield Row(f"relative RMSE: {name}", rmse, 0.3, False, "", detail)
    most = {"largest": max(calls), "plain, for the same error": round(1e6 / rmse**2)}
    yield Row(f"target calls: {name}", float(np.mean(calls)), 10_000, False, "", most)
    seen = float(np.mean([each.seen.low <= 1e-6 <= each.seen.high for each in given]))
    yield Row(f"coverage of the kinds seen: {name}", seen, 0.93, True, "", detail)
    inside = float(np.mean([each.interval.low <= 1e-6 <= each.interval.high for each in found]))
    yield Row(f"coverage of all failures: {name}", inside, 0.93, True, "", detail)


def missed_modes(repetitions: int = 200) -> Row:
    """Bounds below the truth where a mode of 1e-5 is found and one of other sizes is never met."""
    worst = 0.0
    for missed in (1e-4, 1e-3, 5e-3, 2e-2):
        laws = np.array([1e-5, missed, 1 - 1e-5 - missed]), np.array([0.3, 0.0, 0.7])
        with np.errstate(divide="ignore"):
            p, q = np.log(laws[0]), np.log(laws[1])
        below = 0
        for seed in range(repetitions):
            generator = np.random.default_rng(seed)
            samples = [
                Sample(mode < 2, float(p[mode]), float(q[mode]), which == 0, kind=int(mode))
                for which, law in enumerate(laws)
                for mode in generator.choice(3, size=200, p=law)
            ]
            below += failure_probability(samples).interval.high < 1e-5 + missed
        worst = max(worst, below / repetitions)
    name = "bounds below the truth, of a mode that no attacker met"
    return Row(name, worst, 0.05, False, "", {"modes": 4, "repetitions": repetitions})


def checkpoints(repetitions: int = 200) -> Iterator[Row]:
    """Two checkpoints that find different modes, against the last one alone and plain sampling."""
    laws = {
        "baseline": np.array([0.004, 0.004, 0.992]),
        "last": np.array([0.5, 0.001, 0.499]),
        "best": np.array([0.001, 0.5, 0.499]),
    }

    def estimate(seed: int, counts: dict[str, int]) -> Probability | NoProbability:
        generator = np.random.default_rng(seed)
        attackers = {name: count for name, count in counts.items() if name != "baseline"}
        samples = []
        for name, count in counts.items():
            for mode in generator.choice(3, size=count, p=laws[name]):
                logs = {each: float(np.log(laws[each][mode])) for each in laws}
                q = mixture_logprob(logs, attackers)
                samples.append(Sample(mode < 2, logs["baseline"], q, name == "baseline", None, 0))
        return failure_probability(samples)

    both = {"baseline": 200, "last": 100, "best": 100}
    alone = {"baseline": 200, "last": 200}
    widths, inside, gains = [], [], []
    for seed in range(repetitions):
        several, one = estimate(seed, both), estimate(seed, alone)
        inside.append(several.interval.low <= 0.008 <= several.interval.high)
        widths.append(np.ptp(several.interval) / np.ptp(one.interval))
        gains.append(np.ptp(several.interval) / np.ptp(several.evidence.plain.interval))
    detail = {"repetitions": repetitions}
    coverage = float(np.mean(inside))
    yield Row("coverage: two checkpoints and the baseline", coverage, 0.93, True, "", detail)
    ratio = float(np.median(widths))
    yield Row("width with both checkpoints / with the last alone", ratio, 1.0, False, "", detail)
    widest = float(np.max(gains))
    name = "largest width / that of the baseline's conversations alone"
    yield Row(name, widest, 1.0 + 1e-9, False, "", detail)


@torch.no_grad()
def plain_answers(count: int) -> Counter[str]:
    """Return plain samples of the bundled model's answers; equal beginnings are computed once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    from astra_rl.models.references import resolve_reference

    folder = resolve_reference("bundled:smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": MESSAGE}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    generator = np.random.default_rng(0)
    alive: dict[tuple[int, ...], int] = {(): count}
    ended: Counter[tuple[int, ...]] = Counter()
    for turn in range(TOKENS):
        beginnings, longer = list(alive), {}
        for start in range(0, len(beginnings), 64):
            batch = beginnings[start : start + 64]
            if turn:
                cache = DynamicCache()
                model(prompt, past_key_values=cache, use_cache=True)
                cache.batch_repeat_interleave(len(batch))
                ids = torch.tensor(batch)
                mask = torch.ones(len(batch), prompt.shape[1] + turn, dtype=torch.long)
                logits = model(ids, past_key_values=cache, attention_mask=mask).logits[:, -1]
            else:
                logits = model(prompt).logits[:, -1]
            laws = (logits.double() / TEMPERATURE).softmax(1).numpy()
            for beginning, law in zip(batch, laws, strict=True):
                drawn = generator.multinomial(alive[beginning], law / law.sum())
                for token in np.flatnonzero(drawn).tolist():
                    answer = (*beginning, token)
                    if token == tokenizer.eos_token_id or turn + 1 == TOKENS:
                        ended[answer] += int(drawn[token])
                    else:
                        longer[answer] = int(drawn[token])
        alive = longer
    texts: Counter[str] = Counter()
    for answer, times in ended.items():
        texts[tokenizer.decode(answer, skip_special_tokens=True)] += times
    return texts


def plain_hits() -> int:
    """Return how many of the plain answers have the word."""
    texts = plain_answers(PLAIN)
    return sum(times for text, times in texts.items() if WORD.lower() in text.lower())


def stored_hits() -> int:
    """Return the same of the stored results."""
    plain = [row.detail["plain"] for row in stored("rare_failures") if "plain" in row.detail]
    if not plain or plain[0]["answers"] != PLAIN:
        sys.exit("there are no results of plain answers; run with --real once")
    return int(plain[0]["with the word"])


def real(hits: int) -> Iterator[Row]:
    """A word that the bundled model says in one of 2,000 answers, against a long plain run."""
    low, high = proportion_interval(hits, PLAIN)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "target.yaml": f"model: bundled:smollm2-135m\nmax_new_tokens: {TOKENS}\n"
            f"temperature: {TEMPERATURE}\n",
            "judge.yaml": f"type: keyword\noptions: {{words: [{WORD.lower()}]}}\n",
            "prompts.txt": f"{MESSAGE}\n",
        }
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        astra = (sys.executable, "-m", "astra_rl")
        test = ("test", "target.yaml", "--prompts", "prompts.txt", "--judge", "judge.yaml")
        subprocess.run([*astra, *test, "-o", "run"], cwd=folder, check=True)
        estimate = ("probability", "run", "--steer", STEER, "-n", str(WEIGHTED), "--share", "0.15")
        done = subprocess.run(
            [*astra, *estimate, "--json"], cwd=folder, check=True, stdout=subprocess.PIPE
        )
    yield from compared(json.loads(done.stdout), hits, low, high)


def compared(found: dict[str, Any], hits: int, low: float, high: float) -> Iterator[Row]:
    """Compare the estimate of the command with the plain run."""
    detail = {
        "estimate": found["estimate"],
        "interval of the kinds seen": [found["seen_low"], found["seen_high"]],
        "answers": found["evidence"]["samples"],
        "plain": {"answers": PLAIN, "with the word": hits, "low": low, "high": high},
    }
    gain = found["plain_conversations"] / found["evidence"]["samples"]
    name = f"SmolLM2-135M says {WORD!r}"
    yield Row(f"{name}: plain answers for the same error / answers", gain, 10, detail=detail)
    ratio = found["estimate"] / (hits / PLAIN)
    agree = found["seen_low"] <= high and found["seen_high"] >= low
    yield Row(f"{name}: intervals of the estimate and of the plain run overlap", float(agree), 1,
              unit="", detail={"ratio of the estimates": ratio})  # fmt: skip


def main() -> None:
    rows = [*fitted(), missed_modes(), *checkpoints()]
    if {"--real", "--estimate"} & set(sys.argv[1:]):
        rows += real(plain_hits() if "--real" in sys.argv[1:] else stored_hits())
    else:  # keep the last ones
        rows += [row for row in stored("rare_failures") if row.name.startswith("SmolLM2")]
    save("rare_failures", rows)


if __name__ == "__main__":
    main()
