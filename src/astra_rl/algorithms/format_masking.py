"""Mask negative advantages on format tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from astra_rl.algorithms.policy_steps import PreparedStep
from astra_rl.core.text import written_text
from astra_rl.errors import ConfigurationError, ContractError


class FormatMask:
    """Sets negative advantages of format tokens (tags, for instance) to zero.

    An attack with a low reward is no evidence against its format, but a policy gradient lowers the
    probability of all of its tokens. Without this mask the share of malformed attacks rises during
    training (DialTree-RPO, arXiv 2510.02286: from 0% to 70%).

    Args:
        pattern: Regular expression of the format, for instance ``"</?prompt>"``.

    Raises:
        ConfigurationError: The pattern is not valid.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"format_pattern={pattern!r} is not a regular expression: {error}."
            ) from error

    def apply(self, step: PreparedStep, token_ends: Callable[[str], Sequence[int]]) -> PreparedStep:
        """Return the step with the negative advantages of its format tokens set to zero.

        Such a token has no gradient and still counts in the denominator of the loss.

        Args:
            step: The step.
            token_ends: Returns the end of each token of an attack, see `Problem.token_ends`.

        Raises:
            ContractError: The number of ends is not the number of tokens.
        """
        advantages = step.advantages
        found = [match.span() for match in self.pattern.finditer(written_text(step.attack))]
        if not found or min(advantages, default=0.0) >= 0:
            return step
        ends = token_ends(step.attack)
        if len(ends) != len(advantages):
            raise ContractError(
                f"token_ends returned {len(ends)} offsets for an attack of {len(advantages)} "
                "tokens. Return one per token that get_attacker_logprobs scores."
            )
        spans = zip([0, *ends], ends, strict=False)
        return replace(
            step,
            advantages=tuple(
                0.0
                if advantage < 0 and any(start < stop and first < end for first, stop in found)
                else advantage
                for advantage, (start, end) in zip(advantages, spans, strict=True)
            ),
        )
