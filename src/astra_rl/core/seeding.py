"""Seeds of episodes and of batch rows. `None` means not given; zero is a valid seed."""

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

from astra_rl.core.text import opening_key
from astra_rl.errors import ContractError

# torch is imported where it is used: the command line derives no seeds before it loads models.

_SEED_BITS = 63  # torch generators take signed 64-bit integers


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a seed in [0, 2**63).

    The result is the same on every machine and in every process, so an episode can be replayed from
    the seed of the run and its index.
    """
    # Normalizes NumPy integers and subclasses of str.
    plain = tuple(str(part) if isinstance(part, str) else operator.index(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def fresh_seed() -> int:
    """Draw a seed from the global generator of torch, which `torch.manual_seed` seeds."""
    import torch

    return int(torch.randint(2**_SEED_BITS - 1, ()).item())


def episode_seeds(seed: int | None, count: int) -> list[int]:
    """Return `count` distinct seeds, derived from `seed`; None draws a new one."""
    root = fresh_seed() if seed is None else seed
    return [derive_seed(root, "episode", index) for index in range(count)]


def repetitions(openings: Sequence[Hashable]) -> list[int]:
    """Return for each entry the number of equal entries before it; see `opening_key`."""
    seen: Counter[Hashable] = Counter()
    counts = []
    for key in map(opening_key, openings):
        counts.append(seen[key])
        seen[key] += 1
    return counts


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[random.Random]:
    """Yield a generator; with a seed, the global generator of torch is seeded inside the block too.

    The previous state of torch is restored at the end. Without a seed torch is not touched.
    """
    if seed is None:
        yield random.Random(fresh_seed())
        return
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield random.Random(seed)


def generator_states() -> dict[str, Any]:
    """Return the states of the global generators of torch (all devices), Python and NumPy.

    NumPy is included if it has been imported.
    """
    import torch

    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = (name, keys.tolist(), *rest)
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """Restore the states that `generator_states` returned."""
    import torch

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
    """Set a seed per row for the batched model calls inside the block.

    A problem that samples with `current_row_seeds` generates the same text for a row in any batch.
    One that samples from the global generator of torch repeats it only for the same batch.
    """
    token = _row_seeds.set(tuple(seeds))
    try:
        yield
    finally:
        _row_seeds.reset(token)


def current_row_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds of the enclosing `row_seeds` block, or new ones without one.

    Raises:
        ContractError: The block was opened for another number of rows.
    """
    seeds = _row_seeds.get()
    if seeds is None:
        return tuple(fresh_seed() for _ in range(count))
    if len(seeds) != count:
        raise ContractError(
            f"{count} rows were requested inside a block of {len(seeds)} row seeds. "
            "Open row_seeds() with one seed per row of the call."
        )
    return seeds
