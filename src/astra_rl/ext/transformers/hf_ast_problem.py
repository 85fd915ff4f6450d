"""Import path of the trainer guide for the AST problem, trainer and configuration."""

from astra_rl.ext.transformers.evaluation_problem import HFEvaluationProblem
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.trainer import HFASTConfiguration, HFASTTrainer

__all__ = ["HFASTConfiguration", "HFASTProblem", "HFASTTrainer", "HFEvaluationProblem"]
