"""Problems and trainers for Hugging Face transformers models."""

from astra_rl.ext.transformers.hf_ast_problem import (
    HFASTConfiguration,
    HFASTProblem,
    HFASTTrainer,
    HFEvaluationProblem,
)
from astra_rl.ext.transformers.hub import AttackerCard, push_attacker
from astra_rl.ext.transformers.problem import ModelPair
from astra_rl.ext.transformers.trainer_callbacks import TransformersCallback
from astra_rl.ext.transformers.value import HFValueProblem

__all__ = [
    "AttackerCard",
    "HFASTConfiguration",
    "HFASTProblem",
    "HFASTTrainer",
    "HFEvaluationProblem",
    "HFValueProblem",
    "ModelPair",
    "TransformersCallback",
    "push_attacker",
]
