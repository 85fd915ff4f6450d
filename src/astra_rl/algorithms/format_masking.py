"""Not unlearning a format because of what was said in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from astra_rl.algorithms.policy_steps import PolicyStep
from astra_rl.errors import ConfigurationError, ContractError


class FormatMask:
    """The tokens of an attack that a regular expression finds: its tags, for instance.

    An attack that did badly says nothing against the format that it keeps to, yet a policy gradient
    makes all of its tokens less likely. Without this mask the share of malformed attacks rises
    during training (DialTree-RPO, arXiv 2510.02286: from none to 70%).

    Args:
        pattern: What is part of the format, for instance ``"</?prompt>"``.

    Raises:
        ConfigurationError: The pattern is not valid.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"format_pattern={pattern!r} is no regular expression: {error}."
            ) from error

    def spare(self, step: PolicyStep, token_ends: Callable[[str], Sequence[int]]) -> PolicyStep:
        """Take away the advantages below zero of the tokens that are part of the format.

        Such a token teaches nothing and still counts in the means over tokens.

        Args:
            step: With advantages.
            token_ends: Says where each token of an attack ends, see `Problem.token_ends`.

        Raises:
            ContractError: There is another number of ends than of tokens.
        """
        advantages = step.advantages or ()
        found = [match.span() for match in self.pattern.finditer(str(step.attack))]
        if not found or min(advantages, default=0.0) >= 0:
            return step
        ends = token_ends(step.attack)
        if len(ends) != len(advantages):
            raise ContractError(
                f"token_ends returned {len(ends)} places for an attack of {len(advantages)} "
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
