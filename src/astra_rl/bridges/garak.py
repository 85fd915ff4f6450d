r"""garak: a trained attacker as a generator, by garak's generator of functions.

garak is not imported: its class ``function.Single`` calls `attack`. On the command line::

    garak --target_type function.Single --target_name astra_rl.bridges.garak#attack \
        --generator_options '{"function": {"Single": {"kwargs": {"run": "runs/first"}}}}' ...

As the model that attacks, in the probe ``atkgen``::

    plugins: {probes: {atkgen: {
      red_team_model_type: function.Single,
      red_team_model_name: "astra_rl.bridges.garak#attack",
      red_team_model_config: {kwargs: {run: runs/first}},
      red_team_prompt_template: "[query]", red_team_postproc_rm_regex: "(?!)"}}}

Reports and hit logs of garak are read as attacks by `astra_rl.core.attack_files`.
"""

from __future__ import annotations

from functools import cache

from astra_rl.bridges.attacker import TrainedAttacker


def attack(
    prompt: str,
    run: str,
    goal: str | None = None,
    checkpoint: str = "last",
    seed: int | None = None,
) -> list[str | None]:
    """Return the message of a user that the trained attacker of a run writes.

    Args:
        prompt: What the target said last, as ``atkgen`` gives it; the conversation opens with it.
        run: Folder of the run.
        goal: What the attacker is to bring about, if the brief of the run has no goal of its own.
        checkpoint: Name of a folder in its ``checkpoints``.
        seed: Seed; with one, equal prompts get equal attacks.

    Returns:
        One text; None, which garak counts as a failed call, if the output has no attack.
    """
    attacker = _loaded(run, checkpoint)
    chat = [{"role": "user", "content": prompt}] if prompt else []
    said = attacker.next_message(chat, goal=goal, seed=seed)
    return [str(said) if said.strip() else None]


@cache
def _loaded(run: str, checkpoint: str) -> TrainedAttacker:
    return TrainedAttacker(run, checkpoint=checkpoint)


__all__ = ["attack"]
