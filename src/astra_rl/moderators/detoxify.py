"""Toxicity scores by the models of Detoxify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.out_of_memory import in_batches
from astra_rl.errors import ConfigurationError, did_you_mean, require
from astra_rl.infra.ranges import Count
from astra_rl.infra.registry import named
from astra_rl.moderators.identity import weights_of

VARIANTS = ("multilingual", "original", "original-small", "unbiased", "unbiased-small")
"""The models of Detoxify."""


@named("detoxify")
class DetoxifyModerator(Moderator[str, str]):
    """Scores texts with a model of Detoxify (Hanu and Unitary team 2020).

    The first use of a variant downloads its weights from the releases of Detoxify. A text is
    truncated at the context window of the model.

    Args:
        harm_category: The output that is the score, for instance ``"toxicity"``, ``"threat"`` or
            ``"insult"``; the choice depends on the variant.
        variant: One of `VARIANTS`.
        device: A torch device.
        batch_size: Most texts per forward pass.

    Raises:
        ConfigurationError: The variant or category is unknown, or `batch_size` is below 1.
        MissingDependencyError: The extra ``detoxify`` is not installed.
    """

    def __init__(
        self,
        harm_category: str = "toxicity",
        variant: str = "original",
        *,
        device: str = "cpu",
        batch_size: Count = 32,
    ) -> None:
        DetoxifyModerator.check_options(variant=variant, batch_size=batch_size)
        detoxify = require("detoxify", extra="detoxify")
        self.model = detoxify.Detoxify(variant, device=device)
        categories = sorted(self.model.class_names)
        if harm_category not in categories:
            raise ConfigurationError(
                f"harm_category={harm_category!r}; choose from {categories} (variant {variant!r})."
                f"{did_you_mean(harm_category, categories)}"
            )
        self.harm_category = harm_category
        self.variant = variant
        self.batch_size = batch_size

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless the variant is known and `batch_size` is in range."""
        super().check_options(**options)
        variant = options.get("variant", "original")
        if variant not in VARIANTS:
            raise ConfigurationError(
                f"variant={variant!r}; choose from {list(VARIANTS)}."
                f"{did_you_mean(variant, VARIANTS)}"
            )

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1]; missing if the output of the model is not finite."""
        # Texts of similar length share a batch, to reduce padding.
        order = sorted(range(len(x)), key=lambda row: len(x[row]))
        scores: list[float] = [Score.missing("not scored")] * len(x)
        starts = range(0, len(order), self.batch_size)
        batches = (order[start : start + self.batch_size] for start in starts)

        def run(rows: Sequence[int]) -> Sequence[float]:
            found = self.model.predict([str(x[row]) for row in rows])
            return found[self.harm_category]  # type: ignore[no-any-return]

        for rows, outputs in in_batches(batches, run, doing="judging"):
            for row, output in zip(rows, outputs, strict=True):
                scores[row] = Score.checked(float(output))
        return scores

    def identity_weights(self) -> str | None:
        """Return the source and fingerprint of the weights."""
        return weights_of(self.model)
