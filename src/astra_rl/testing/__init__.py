"""Test doubles and contract checks, for the tests of this library and of its extensions.

The checks run an object as training would, and raise `ContractError` with a description of the
violation. The test doubles train in milliseconds and need no download.
"""

from astra_rl.testing.algorithms import check_algorithm
from astra_rl.testing.checks import (
    check_environment,
    check_moderator,
    check_problem,
    graph_signature,
)
from astra_rl.testing.exports import check_export
from astra_rl.testing.games import LearningCurve, learn, letter_game
from astra_rl.testing.models import tiny_model
from astra_rl.testing.toys import ScriptedModerator, ToyProblem, ToyValueProblem, echo

__all__ = [
    "LearningCurve",
    "ScriptedModerator",
    "ToyProblem",
    "ToyValueProblem",
    "check_algorithm",
    "check_environment",
    "check_export",
    "check_moderator",
    "check_problem",
    "echo",
    "graph_signature",
    "learn",
    "letter_game",
    "tiny_model",
]
