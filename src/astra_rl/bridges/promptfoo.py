"""promptfoo: a trained attacker as a Python provider.

promptfoo runs the file with its own worker and calls `call_api`. In ``promptfooconfig.yaml`` give
the path of this module, which ``python -m astra_rl.bridges.promptfoo`` prints::

    providers:
      - id: "file:///.../astra_rl/bridges/promptfoo.py"
        config: {run: runs/first, goal: "{{goal}}"}

promptfoo uses the Python of the environment variable ``PROMPTFOO_PYTHON``. Its result files are
read as attacks by `astra_rl.core.attack_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from astra_rl.bridges.attacker import TrainedAttacker
from astra_rl.errors import AstraError
from astra_rl.infra.jsonio import parse_json


def call_api(prompt: str, options: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the next message of the user, as promptfoo's provider protocol has it.

    Args:
        prompt: What the conversation opens with, or a chat as JSON: a list of messages, in which
            the attacker is the user.
        options: ``config`` has ``run`` and optionally ``checkpoint``, ``goal``, ``device`` and
            ``seed``.
        context: Its ``vars`` may have a ``goal`` too.

    Returns:
        ``output`` with the text, or ``error`` with a message.
    """
    config = dict(options.get("config") or {})
    goal = (context.get("vars") or {}).get("goal") or config.get("goal")
    if "run" not in config:
        return {"error": "give the folder of a run: config: {run: runs/first}"}
    try:
        attacker = _loaded(
            str(config["run"]), str(config.get("checkpoint", "last")), config.get("device")
        )
        said = attacker.next_message(_chat(prompt), goal=goal, seed=config.get("seed"))
    except AstraError as error:
        return {"error": str(error)}
    if not said.strip():
        return {"error": "the output of the attacker has no attack"}
    return {"output": str(said)}


def _chat(prompt: str) -> list[dict[str, Any]]:
    """Return a prompt as a chat; one that is no list of messages is a single message."""
    try:
        data = parse_json(prompt)
    except ValueError:
        data = None
    if isinstance(data, list) and data and all(isinstance(each, dict) for each in data):
        return data
    return [{"role": "user", "content": prompt}] if prompt else []


@cache
def _loaded(run: str, checkpoint: str, device: str | None) -> TrainedAttacker:
    return TrainedAttacker(run, checkpoint=checkpoint, device=device)


if __name__ == "__main__":
    print(f"file://{__file__}")


__all__ = ["call_api"]
