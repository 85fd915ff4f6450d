"""Petri (inspect_petri): a trained attacker as the auditor; both need Python 3.12 or newer.

Petri's own auditor is a model that calls tools and follows instructions. An attacker that was
trained here writes messages only, so it takes the place of the whole agent: it sends its messages
to the target as Petri's tools do, and Petri records and judges the conversation.
"""

from __future__ import annotations

from functools import partial

from astra_rl.bridges.inspect import in_thread, loaded_attacker
from astra_rl.core.seeding import derive_seed
from astra_rl.errors import ConfigurationError, MissingDependencyError

try:
    from inspect_ai.agent import Agent, AgentState, agent
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser
    from inspect_ai.solver import Generate, Solver, TaskState, solver
    from inspect_petri import audit_solver, target_agent
    from inspect_petri.target import ResponseOutput, controller
except ImportError as error:
    raise MissingDependencyError(
        "inspect_petri is not installed, or this Python is older than 3.12, which it needs. "
        "Install it with: pip install inspect_petri"
    ) from error


@solver
def trained_audit(
    run: str,
    turns: int = 3,
    system: str | None = None,
    checkpoint: str = "last",
    seed: int = 0,
) -> Solver:
    """Let the trained attacker of a run audit the target, in the place of Petri's `audit_solver`.

    Args:
        run: Folder of the run.
        turns: Messages of the attacker.
        system: System message of the target; None sends none.
        checkpoint: Name of a folder in its ``checkpoints``.
        seed: Seed of the messages; together with the sample, the epoch and the turn.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        key = derive_seed(seed, str(state.sample_id), state.epoch)
        audit = audit_solver(
            auditor=trained_auditor(run, turns, system, checkpoint, key),
            target=target_agent(system_required=system is not None),
        )
        return await audit(state, generate)

    return solve


@agent(name="astra_rl_auditor")
def trained_auditor(
    run: str,
    turns: int = 3,
    system: str | None = None,
    checkpoint: str = "last",
    seed: int | None = None,
) -> Agent:
    """Return a trained attacker as an auditor of Petri, for `audit_solver`.

    The seed instructions of the sample are its goal, after the brief that it was trained with. It
    stops early where it writes no message.

    Args:
        run: Folder of the run.
        turns: Messages of the attacker.
        system: System message of the target; None sends none, which a target of Petri accepts with
            ``target_agent(system_required=False)``.
        checkpoint: Name of a folder in its ``checkpoints``.
        seed: Seed of the messages, the same in each sample; None draws them.
    """

    async def execute(state: AgentState) -> AgentState:
        if controller().state.seed_tools:
            raise ConfigurationError(
                "the sample gives tools to the target, and a trained attacker cannot invent their "
                "results; use samples without tools, or Petri's own auditor."
            )
        attacker = await in_thread(loaded_attacker, run, checkpoint)
        context = attacker.opening(goal=controller().state.seed_instructions, system=system)
        if system is not None:
            await controller().stage_system(system)
        for turn in range(turns):
            seeds = None if seed is None else [derive_seed(seed, turn)]
            (attack,) = await in_thread(partial(attacker.write, [context], seeds))
            if not attack.strip():
                break
            await controller().stage_user(str(attack))
            answered = await controller().resume(expected=ResponseOutput)
            response = answered.output.completion
            state.messages += [
                ChatMessageAssistant(content=str(attack)), ChatMessageUser(content=response)
            ]  # fmt: skip
            context = context + attack + response
        return state

    return execute


__all__ = ["trained_audit", "trained_auditor"]
