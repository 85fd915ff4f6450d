"""Seeds: `None` is the only "not given", zero is a seed, and a seed fixes all it promises."""

from __future__ import annotations

import contextlib
import hashlib
import operator
import random
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from astra_rl.errors import ContractError

_SEED_BITS = 63  # torch generators take signed 64-bit integers


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a seed in [0, 2**63).

    The same parts give the same seed on every machine and in every process, so an episode can be
    replayed from the run's seed and its number alone.
    """
    # A NumPy integer is the number it stands for, and an Utterance the text.
    plain = tuple(str(part) if isinstance(part, str) else operator.index(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def fresh_seed() -> int:
    """Draw a seed from torch's global generator, so that `torch.manual_seed` governs it."""
    return int(torch.randint(2**_SEED_BITS - 1, ()).item())


def episode_seeds(seed: int | None, count: int) -> list[int]:
    """Return `count` distinct seeds; the same ones for the same `seed`."""
    root = fresh_seed() if seed is None else seed
    return [derive_seed(root, "episode", index) for index in range(count)]


def repetitions(openings: Sequence[Hashable]) -> list[int]:
    """Return for each entry how many equal ones came before it."""
    seen: Counter[Hashable] = Counter()
    counts = []
    for opening in openings:
        counts.append(seen[opening])
        seen[opening] += 1
    return counts


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[random.Random]:
    """Yield a generator; with a seed, torch's global sampling inside the block repeats too.

    Without a seed nothing is touched and the generator is unpredictable.
    """
    if seed is None:
        yield random.Random(fresh_seed())
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield random.Random(seed)


def generator_states() -> dict[str, Any]:
    """Return the states of all global generators: torch's on every device, Python's, NumPy's.

    NumPy's is among them if somebody has imported it.
    """
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = (name, keys.tolist(), *rest)
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """Give the global generators back the states that `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    if "python" in states:
        random.setstate(states["python"])
    devices = states.get("cuda", ())
    if len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(list(devices))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in states:
        numpy.random.set_state(states["numpy"])


_row_seeds: ContextVar[tuple[int, ...] | None] = ContextVar("row_seeds", default=None)


@contextlib.contextmanager
def row_seeds(seeds: Sequence[int]) -> Iterator[None]:
    """Give each row of the batched model calls inside the block a seed of its own.

    A problem that samples from `current_row_seeds` generates the same text for a row whatever else
    is in the batch. One that samples from torch's global generator repeats only for the same batch.
    """
    token = _row_seeds.set(tuple(seeds))
    try:
        yield
    finally:
        _row_seeds.reset(token)


def current_row_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds of the enclosing `row_seeds` block, or fresh ones outside of any.

    Raises:
        ContractError: The block was opened for another number of rows.
    """
    seeds = _row_seeds.get()
    if seeds is None:
        return tuple(fresh_seed() for _ in range(count))
    if len(seeds) != count:
        raise ContractError(
            f"{count} rows were asked for inside a block of {len(seeds)} row seeds. "
            "Open row_seeds() with one seed per row of the call."
        )
    return seeds
