"""The names of the trainer guide, at the path it gives."""

from astra_rl.ext.transformers.problem import HFASTProblem, HFEvaluationProblem
from astra_rl.ext.transformers.trainer import HFASTConfiguration, HFASTTrainer

__all__ = ["HFASTConfiguration", "HFASTProblem", "HFASTTrainer", "HFEvaluationProblem"]
