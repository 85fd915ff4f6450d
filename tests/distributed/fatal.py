"""A run in which something happens to one process, at a moment that a file names.

The file ``fatal.json`` in the working directory names the process, the place, how often the place
is passed before, and what happens there.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from astra_rl.algorithms.grpo import GRPO
from astra_rl.algorithms.policy_steps import PolicyBatch, PolicyStep, PreparedStep
from astra_rl.core.common import Metrics
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Exchange
from astra_rl.distributed.ranks import join

PLAN = Path("fatal.json")
HAPPENED = Path("happened.txt")
_passed: Counter[str] = Counter()


def plan(place: str, rank: int, what: str, count: int = 0) -> None:
    """Write the file, and count anew."""
    PLAN.write_text(json.dumps({"place": place, "rank": rank, "what": what, "count": count}))


def seconds_since() -> float:
    """Return the seconds since then; the clock is that of the machine, for all processes."""
    return time.monotonic() - float(HAPPENED.read_text())


def passes(place: str) -> bool:
    """Pass a place; return whether the loss is to be made NaN."""
    if not PLAN.is_file():
        _passed.clear()
        return False
    planned = json.loads(PLAN.read_text())
    if planned["place"] != place or planned["rank"] != join().rank:
        return False
    _passed[place] += 1
    if _passed[place] != 1 + planned["count"]:
        return False
    what = planned["what"]
    HAPPENED.write_text(str(time.monotonic()))
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    elif what == "raise":
        raise ZeroDivisionError("a defect")
    return bool(what == "nan")


class Vowels(Moderator[str, str]):
    """Scores the share of the first letters of the alphabet in an attack."""

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        """Return a score per text."""
        passes("play")
        attacks = [each.attack if isinstance(each, Exchange) else str(each) for each in x]
        return [sum(map(attack.count, "abcdefghij")) / max(1, len(attack)) for attack in attacks]


class FatalGRPO(GRPO):
    """GRPO with places at which something may happen."""

    def prepare(self, steps: Sequence[PolicyStep]) -> Sequence[PreparedStep]:
        """Pass the place ``prepare``."""
        passes("prepare")
        return super().prepare(steps)

    def step(self, batch: PolicyBatch) -> tuple[torch.Tensor, Metrics]:
        """Pass the place ``learn``."""
        spoiled = passes("learn")
        loss, logs = super().step(batch)
        return (loss * math.nan if spoiled else loss), logs

    def state_dict(self) -> dict[str, Any]:
        """Pass the place ``save``."""
        passes("save")
        return super().state_dict()
