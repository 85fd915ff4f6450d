"""Published ways to play: the problem, the environment and the evaluator of each."""

from astra_rl.methods.ast_problem import ASTEnvironment, ASTEvaluator, ASTNode, ASTProblem

__all__ = ["ASTEnvironment", "ASTEvaluator", "ASTNode", "ASTProblem"]
