"""The cost model of docs/scaling.md against a discrete-event simulation.

    python benchmarks/scale_simulation.py

The formulas know means; the simulation plays every row of every experience token by token, with
random lengths, on engines that take the next experience when they are free, and with a trainer that
learns them in order. Both have the same figures of a machine, which are assumptions: nothing here
is measured on a GPU. Prints a table and writes results/scale_simulation.json.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """An accelerator, and the network between trainer and engines.

    Attributes:
        flops: Arithmetic operations per second at the precision of the weights.
        bandwidth: Bytes per second of its memory.
        prefill_share: Share of `flops` that long products reach, in (0, 1].
        decode_share: Share of `flops` that decoding steps reach, in (0, 1].
        launch: Seconds of a decoding step besides arithmetic and memory.
        network: Bytes per second.
    """

    flops: float = 990e12
    bandwidth: float = 3.35e12
    prefill_share: float = 0.4
    decode_share: float = 0.3
    launch: float = 0.004
    network: float = 2.5e9


@dataclass(frozen=True)
class Work:
    """A training step: its conversations of one turn, and its update.

    Attributes:
        parameters: Weights of the attacker, and of the target.
        kv: Bytes of keys and values of a token.
        rows: Conversations.
        prompt: Tokens of the attacker's prompt.
        attack: Most tokens of an attack.
        response: Most tokens of a response.
        stop: Probability of each token to be the last one.
        per_token: Operations of an update per weight and token: 4 for LoRA, 6 for all weights.
        sent: Bytes that are sent to an engine for each version of the attacker.
    """

    parameters: float = 8e9
    kv: float = 131_072
    rows: int = 512
    prompt: int = 160
    attack: int = 64
    response: int = 128
    stop: float = 0.01
    per_token: float = 4
    sent: float = 84e6

    def mean(self, most: int) -> float:
        """Return the mean length of a text: geometric, cut at `most`."""
        return (1 - (1 - self.stop) ** most) / self.stop if self.stop else float(most)


def decode_seconds(work: Work, machine: Machine, rows: float, context: float) -> float:
    """Return the seconds of one decoding step: of the memory or of the arithmetic, and launches."""
    read = (2 * work.parameters + rows * context * work.kv) / machine.bandwidth
    computed = 2 * work.parameters * rows / (machine.flops * machine.decode_share)
    return max(read, computed) + machine.launch


def prefill_seconds(work: Work, machine: Machine, tokens: float) -> float:
    """Return the seconds of reading prompts."""
    return 2 * work.parameters * tokens / (machine.flops * machine.prefill_share)


def update_seconds(work: Work, machine: Machine, tokens: float) -> float:
    """Return the seconds of scoring and learning tokens."""
    learned = work.per_token * work.parameters * tokens / (machine.flops * machine.prefill_share)
    return prefill_seconds(work, machine, tokens) + learned


# The cost model: closed formulas of means.


def predicted_rollout(work: Work, machine: Machine) -> float:
    """Return the seconds in which an engine plays an experience."""
    seconds = work.sent / machine.network
    context = float(work.prompt)
    for most in (work.attack, work.response):
        mean = work.mean(most)
        seconds += prefill_seconds(work, machine, work.rows * context)
        rows, middle = work.rows * mean / most, context + most / 2
        seconds += most * decode_seconds(work, machine, rows, middle)
        context += mean
    return seconds


def predicted_update(work: Work, machine: Machine) -> float:
    """Return the seconds in which the trainer scores an experience and learns from it."""
    return update_seconds(work, machine, work.rows * (work.prompt + work.mean(work.attack)))


def predicted_period(work: Work, machine: Machine, staleness: int, engines: int) -> float:
    """Return the seconds of a training step.

    The trainer is busy, or all engines are, or ``staleness + 1`` experiences are under way, which
    is as many as may be (Little's law).
    """
    rollout, update = predicted_rollout(work, machine), predicted_update(work, machine)
    return max(update, rollout / engines, (rollout + update) / (staleness + 1))


def staleness_needed(work: Work, machine: Machine) -> int:
    """Return the least staleness with which the trainer never waits, given enough engines."""
    return math.ceil(predicted_rollout(work, machine) / predicted_update(work, machine))


# The simulation: events of single decoding steps.


@dataclass(frozen=True)
class Simulated:
    """What happened.

    Attributes:
        period: Seconds of a training step, after the first ones.
        busy: Share of the time in which the trainer worked.
        oldest: Largest number of updates between the weights that played an experience and those
            that learned from it.
        versions: Most versions of the attacker that were needed at a time, the newest included.
    """

    period: float
    busy: float
    oldest: int
    versions: int


def rollout_steps(work: Work, machine: Machine, draw: random.Random) -> Iterator[tuple[float, int]]:
    """Yield the seconds of each event of an experience, and its number of tokens to learn."""
    yield work.sent / machine.network, 0
    contexts = [work.prompt] * work.rows
    for most in (work.attack, work.response):
        lengths = [_length(work, most, draw) for _ in contexts]
        yield prefill_seconds(work, machine, sum(contexts)), 0
        for at in range(most):
            alive = [row for row, length in enumerate(lengths) if length > at]
            if not alive:
                break
            context = sum(contexts[row] for row in alive) / len(alive) + at
            yield decode_seconds(work, machine, len(alive), context), 0
        contexts = [a + b for a, b in zip(contexts, lengths, strict=True)]
        if most == work.attack:
            yield 0.0, sum(contexts)


def _length(work: Work, most: int, draw: random.Random) -> int:
    if not work.stop:
        return most
    return min(most, 1 + int(math.log(1 - draw.random()) / math.log(1 - work.stop)))


def simulate(
    work: Work, machine: Machine, *, staleness: int, engines: int, steps: int = 30, seed: int = 0
) -> Simulated:
    """Play and learn a number of experiences.

    Experience k is played with weights that are at most `staleness` updates older than those that
    learn from it, so it begins after update k - staleness - 1.
    """
    draw = random.Random(seed)
    events: list[tuple[float, int, int]] = []  # time, experience, or -1 for the end of an update
    playing: dict[int, Iterator[tuple[float, int]]] = {}
    version_of: dict[int, int] = {}
    tokens: dict[int, int] = {}
    played: set[int] = set()
    ends: list[float] = []
    now = worked = 0.0
    begun = oldest = versions = 0
    is_learning = False
    while len(ends) < steps:
        while begun < steps and len(playing) < engines and begun - staleness <= len(ends):
            playing[begun] = rollout_steps(work, machine, draw)
            version_of[begun] = len(ends)
            heapq.heappush(events, (now, begun, 0))
            begun += 1
        if not is_learning and len(ends) in played:
            oldest = max(oldest, len(ends) - version_of[len(ends)])
            seconds = update_seconds(work, machine, tokens[len(ends)])
            heapq.heappush(events, (now + seconds, -1, 0))
            worked, is_learning = worked + seconds, True
        versions = max(versions, len({len(ends), *(version_of[each] for each in playing)}))
        now, experience, _ = heapq.heappop(events)
        if experience < 0:
            ends.append(now)
            is_learning = False
            continue
        step = next(playing[experience], None)
        if step is None:
            del playing[experience]
            played.add(experience)
            continue
        tokens[experience] = tokens.get(experience, 0) + step[1]
        heapq.heappush(events, (now + step[0], experience, 0))
    first = steps // 3
    return Simulated(
        period=(ends[-1] - ends[first]) / (steps - 1 - first),
        busy=worked / now,
        oldest=oldest,
        versions=versions,
    )


WORKS = {
    "8B, LoRA": Work(),
    "8B, all weights": Work(per_token=6, sent=16e9),
    "70B target, 8B attacker": Work(parameters=70e9, kv=327_680, rows=128, stop=0.005),
}
"""In the last one both models count as 70B, which is an upper bound."""


def table(steps: int = 30, *, rows: int | None = None) -> list[dict[str, float | str]]:
    """Return predicted and simulated seconds of a step for each work, staleness and engines."""
    machine, found = Machine(), []
    for name, given in WORKS.items():
        work = given if rows is None else replace(given, rows=rows)
        for engines in (1, 4):
            for staleness in range(5):
                predicted = predicted_period(work, machine, staleness, engines)
                seen = simulate(work, machine, staleness=staleness, engines=engines, steps=steps)
                found.append(
                    {
                        "work": name,
                        "engines": engines,
                        "staleness": staleness,
                        "predicted": round(predicted, 3),
                        "simulated": round(seen.period, 3),
                        "difference": round(predicted / seen.period - 1, 4),
                        "trainer busy": round(seen.busy, 3),
                        "oldest": seen.oldest,
                        "versions": seen.versions,
                    }
                )
    return found


def main() -> None:
    found = table()
    for each in found:
        print(*(f"{value}" for value in each.values()), sep="  ")
    largest = max(abs(float(each["difference"])) for each in found)
    print(f"largest difference: {100 * largest:.1f}%")
    path = Path(__file__).parent / "results" / "scale_simulation.json"
    record = {"benchmark": "scale_simulation", "largest_difference": largest, "table": found}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
