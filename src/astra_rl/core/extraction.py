"""Extraction of the attack from the output of an attacker that also writes private reasoning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from astra_rl.core.text import NoAttack, Utterance
from astra_rl.errors import ConfigurationError

_TAG = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True)
class Extraction:
    """Takes the attack out of the output of an attacker.

    Target, moderators and records get the attack only. The extracted `Utterance` keeps the token
    ids and log-probabilities of the whole output, so all tokens are trained, and the attacker
    itself reads its whole output in later turns.

    Attributes:
        tag: Name of a tag: the output must contain ``<tag>`` and ``</tag>`` exactly once, in this
            order, and end with ``</tag>`` and optional white space; the attack is the text between
            them, which may be empty. This is the check of RL-Hammer (arXiv 2510.04885,
            ``attack_prompt_format_reward`` in the authors' reward_func.py).
        pattern: A regular expression instead, which must match the whole output; the attack is its
            first group. ``.`` matches line breaks too.

    Raises:
        ConfigurationError: Not exactly one of the two is given, or one is not valid.
    """

    tag: str | None = None
    pattern: str | None = None

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if (self.tag is None) == (self.pattern is None):
            raise ConfigurationError(
                f"tag={self.tag!r} and pattern={self.pattern!r}; give exactly one of the two."
            )
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise ConfigurationError(
                f"tag={self.tag!r}; give its name only: letters, digits, - and _, for instance "
                "'prompt'."
            )
        if self.pattern is not None and not self._compiled.groups:
            raise ConfigurationError(
                f"pattern={self.pattern!r} has no group; put the attack in parentheses, for "
                r"instance '.*<answer>(.*)</answer>\s*'."
            )

    def __call__(self, output: str) -> Utterance:
        """Return the attack in an output; a `NoAttack` if there is none.

        An output that was cut, because the context window is full, is returned unchanged.
        """
        whole = Utterance.of(output)
        if whole.finish_reason == "context_overflow":
            return whole
        found = self._between_tags(str(whole)) if self.tag else self._by_pattern(str(whole))
        kind = NoAttack if found is None else Utterance
        return kind(
            found or "",
            token_ids=whole.token_ids,
            logprobs=whole.logprobs,
            finish_reason=whole.finish_reason,
            written=str(whole),
            reasoning=whole.reasoning,
        )

    def _between_tags(self, text: str) -> str | None:
        opening, closing = f"<{self.tag}>", f"</{self.tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return None
        _, _, rest = text.partition(opening)
        found, end, after = rest.partition(closing)
        return found if end and not after.strip() else None

    def _by_pattern(self, text: str) -> str | None:
        match = self._compiled.fullmatch(text)
        return match[1] if match else None

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        assert self.pattern is not None
        try:
            return re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise ConfigurationError(
                f"pattern={self.pattern!r} is not a regular expression: {error}."
            ) from error
