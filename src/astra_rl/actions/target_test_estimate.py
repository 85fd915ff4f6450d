"""What a test of a target sends, and its cost, before anything is sent or loaded.

No library of models is imported, so that ``astra-rl validate`` is quick.
"""

from __future__ import annotations

from astra_rl.actions.attacks import DIRECT, GivenAttack, given_attacks
from astra_rl.config.estimate import EstimateRow, estimate, estimate_given
from astra_rl.config.plan import Plan


def requests_of(plan: Plan) -> list[GivenAttack]:
    """Return what a test sends, each prompt `evaluation.trials` times.

    Raises:
        ConfigurationError: A prompt has no text to send.
    """
    openings = list(plan.openings.test)
    return given_attacks(DIRECT, openings) * plan.evaluation.trials


def estimate_test(plan: Plan) -> list[EstimateRow]:
    """Return the largest number of calls and tokens of `run_test`; nothing is sent or loaded."""
    if plan.attacker is not None:
        return estimate(plan, training=False)
    sent = requests_of(plan)
    return estimate_given(plan, [each.context for each in sent], [[each.attack] for each in sent])
