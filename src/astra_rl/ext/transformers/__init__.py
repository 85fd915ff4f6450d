"""Problems and trainers for Hugging Face transformers models."""

from astra_rl.ext.transformers.hf_ast_problem import (
    HFASTConfiguration,
    HFASTProblem,
    HFASTTrainer,
    HFEvaluationProblem,
)
from astra_rl.ext.transformers.problem import ModelPair
from astra_rl.ext.transformers.value import HFValueProblem

__all__ = [
    "HFASTConfiguration",
    "HFASTProblem",
    "HFASTTrainer",
    "HFEvaluationProblem",
    "HFValueProblem",
    "ModelPair",
]
