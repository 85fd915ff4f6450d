"""Write a configuration to start from."""

from __future__ import annotations

from pathlib import Path

from astra_rl.actions.redteam import judge_section, prompts_section, target_section
from astra_rl.config.preset_files import preset_text
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import write_atomic


def write_initial_config(
    path: str | Path,
    *,
    preset: str,
    target: str,
    prompts: str,
    judge: str,
    model: str | None = None,
    judge_model: str | None = None,
) -> Path:
    """Write a configuration of a preset with a target, prompts and a moderator; see `redteam`.

    Args:
        path: The file; it must not exist.
        preset: Name of the preset.
        target: See `redteam`.
        prompts: See `redteam`.
        judge: See `redteam`; it is the moderator, and so the training reward.
        model: See `redteam`.
        judge_model: See `redteam`.

    Raises:
        ConfigurationError: The file exists, or there is no such preset or moderator.
    """
    path = Path(path)
    if path.exists():
        raise ConfigurationError(f"{path} exists; name another file, or remove it.")
    preset_text(preset)  # raises if there is none
    own = {
        "target": target_section(target, model).model_dump(exclude_defaults=True),
        "moderator": judge_section(judge, judge_model).model_dump(exclude_defaults=True),
        "prompts": prompts_section(prompts),
    }
    write_atomic(
        path,
        "# Settings that are not here are those of the preset: astra-rl info preset "
        f"{preset}\n# All settings: astra-rl info config\npreset: {preset}\n{dump_yaml(own)}",
    )
    return path
