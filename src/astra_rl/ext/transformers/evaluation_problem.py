"""AST problem for evaluation, without trainable parameters."""

from __future__ import annotations

from typing import Any, ClassVar

from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.model_pool import ModelSource
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.targets.base import Target


class HFEvaluationProblem(HFASTProblem):
    """AST problem for the evaluation of a trained attacker; no parameter is trainable.

    Adapters are not merged, so a LoRA attacker computes exactly what it computed in training.

    Args:
        attacker_model_id: The trained attacker, for example a checkpoint folder.
        target_model_id: The model under test.
        moderator: The judge.
        device: See `HFASTProblem`.
        baseline_model_id: Model of ordinary user messages for the likelihood of attacks; None is
            the target, which then must be local.
        options: See `HFASTProblem`.
    """

    _trains_attacker: ClassVar[bool] = False

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource | Target,
        moderator: Moderator[str, str],
        device: str = "cpu",
        *,
        baseline_model_id: ModelSource | None = None,
        **options: Any,
    ) -> None:
        baseline = target_model_id if baseline_model_id is None else baseline_model_id
        if isinstance(baseline, Target):
            raise ConfigurationError(
                f"{baseline.name} gives no probabilities; give a baseline_model_id for the "
                "likelihood of attacks."
            )
        super().__init__(attacker_model_id, target_model_id, baseline, moderator, device, **options)
