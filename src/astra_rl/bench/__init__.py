"""Benchmarks of discovery: targets with planted failures, so that recall is a number.

A `PlantedGame` has K failure modes whose probabilities in ordinary use are known exactly. `play`
trains any algorithm on it with the ordinary `Trainer`, and `discovery` measures what the calls
of the target found. See docs/discovery.md and benchmarks/discovery.py.
"""

from astra_rl.bench.assistants import GuardedAssistant
from astra_rl.bench.baselines import NoTraining
from astra_rl.bench.discovery import (
    Call,
    Discovery,
    KnownModes,
    Measured,
    RuledByReply,
    caused,
    discovery,
    expected_recall,
    over_seeds,
)
from astra_rl.bench.game import Mode, PlantedGame
from astra_rl.bench.organism import OrganismTarget
from astra_rl.bench.parts import PlantedTarget, planted_attacker, save_planted_attacker
from astra_rl.bench.play import CallLog, Played, PlayedTarget, discovered, play

__all__ = [
    "Call",
    "CallLog",
    "Discovery",
    "GuardedAssistant",
    "KnownModes",
    "Measured",
    "Mode",
    "NoTraining",
    "OrganismTarget",
    "PlantedGame",
    "PlantedTarget",
    "Played",
    "PlayedTarget",
    "RuledByReply",
    "caused",
    "discovered",
    "discovery",
    "expected_recall",
    "over_seeds",
    "planted_attacker",
    "play",
    "save_planted_attacker",
]
