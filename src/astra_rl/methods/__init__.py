"""Published ways to play: the problem, the environment and the evaluator of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.infra.lazy_names import load_name, modules_of

if TYPE_CHECKING:
    from astra_rl.methods.ast_problem import ASTEnvironment, ASTEvaluator, ASTNode, ASTProblem

_MODULES = modules_of(
    __name__,
    {
        "ast_problem": "ASTEnvironment ASTEvaluator ASTNode ASTProblem",
    },
)

__all__ = ["ASTEnvironment", "ASTEvaluator", "ASTNode", "ASTProblem"]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
