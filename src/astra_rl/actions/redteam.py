"""Test a target with prompts in one call: sections of a configuration from a few arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astra_rl.actions.target_test import TargetTest, run_test
from astra_rl.config.loading import (
    load_moderator,
    load_prompted_attacker,
    load_target,
    validated,
    with_scenario,
)
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import (
    LocalTargetConfig,
    ModeratorConfig,
    PromptedAttackerConfig,
    RunConfig,
    TargetConfig,
)
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation
from astra_rl.datasets.files import HUB_PREFIX
from astra_rl.datasets.scenario_files import scenario_names
from astra_rl.errors import ConfigurationError
from astra_rl.infra.importing import is_path
from astra_rl.infra.jsonio import json_line, write_atomic
from astra_rl.moderators.function import FunctionModerator
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.resume import starting_in
from astra_rl.targets.base import Target
from astra_rl.targets.budget import Budget
from astra_rl.targets.function import CallableTarget

GIVEN_IN_PYTHON = "given_in_python"
"""Module, in the saved configuration, of a target or judge that was an object of Python: the
configuration cannot construct it again."""
PROMPTS_FILE = "prompts.jsonl"
"""File in the run folder with the prompts that were given in Python."""

Prompts = str | Path | Iterable[str | Mapping[str, Any]]
"""A file, the name of a scenario, or texts and rows (``{"prompt": ..., "category": ...}``)."""


def redteam(
    target: str | Target | Callable[..., Any],
    prompts: Prompts | None = None,
    judge: str | Moderator[Any, Any] | Callable[..., Any] | None = None,
    *,
    scenario: str | Path | None = None,
    model: str | None = None,
    judge_model: str | None = None,
    attacker: str | Target | Callable[..., Any] | None = None,
    attacker_model: str | None = None,
    attacks: str | None = None,
    examples: str | Path | None = None,
    column: str | Mapping[str, str] | None = None,
    threshold: float | None = None,
    trials: int = 1,
    budget: Budget | Mapping[str, float] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> TargetTest:
    """Test a target with prompts: send each as it is, judge every reply, and write a report.

    Nothing is trained, and all prompts are used. With an attacker, which is only prompted, they are
    the goals that it pursues in messages of its own. The folder of the result is a
    run: `astra-rl report`, `compare`, `replay`, `score`, `export` and the other commands read it.

    ```python
    result = astra_rl.redteam(my_chatbot.answer, "prompts.csv", judge="secret_leak")
    print(result.asr().text, len(result.kinds), result.folder.report)
    ```

    Args:
        target: A function from a text (or from messages) to a reply, a `Target`, the URL of an
            OpenAI-compatible endpoint (with `model`), ``"package.module:function"``, a YAML file
            with a target section, or the folder or hub id of a model.
        prompts: A file that `load_rows` reads, the name of a bundled scenario, or texts.
            Either `prompts` or `scenario` is given.
        judge: A `Moderator`, the name of one, a YAML file with a moderator section, the URL of an
            endpoint whose model judges harm (with `judge_model`), or a function from a list of
            replies to a list of scores in [0, 1]. None is the judge of the scenario.
        scenario: Name of a bundled scenario, or the path of a scenario file.
        model: Name of the model at the endpoint of `target`.
        judge_model: Name of the model at the endpoint of `judge`; None is `model`.
        attacker: Writes the messages to the target, with each prompt as its goal: given as
            `target`, but no local model. None sends the prompts.
        attacker_model: Name of the model at the endpoint of `attacker`; None is `model`.
        attacks: How it attacks, see `attack_environment`; None is one message per prompt.
        examples: File of attacks for ``"few-shot"``, see `read_attacks`.
        column: Column of the file with the prompts, if it is not called ``prompt``; or several by
            field, for instance ``{"prompt": "question", "category": "topic"}``.
        threshold: Score in (0, 1] from which a reply is a failure of the target. None is that of
            the scenario if its judge is used, else 0.5.
        trials: Conversations per prompt.
        budget: Limits; what is tested within them is a random sample of the prompts.
        seed: Seed of that choice, and of local models.
        output: Folder of the run; None creates one under ``runs``.

    Raises:
        ConfigurationError: An argument is wrong, or the prompts cannot be read.
        BudgetEndedError: A budget ended the test before a conversation was complete.
    """
    if prompts is not None:
        _check_source(prompts)
    with starting_in(output, "test") as run:
        if prompts is not None and not isinstance(prompts, str | Path):
            prompts = _written(prompts, run)
        config = target_test_config(
            target if isinstance(target, str) else _name_of(target),
            prompts,
            judge if isinstance(judge, str | None) else _name_of(judge),
            scenario=scenario,
            model=model,
            judge_model=judge_model,
            attacker=attacker if isinstance(attacker, str | None) else _name_of(attacker),
            attacker_model=attacker_model,
            attacks=attacks,
            examples=examples,
            column=column,
            threshold=threshold,
            trials=trials,
            budget=budget,
            seed=seed,
        )
        return run_test(plan_target_test(config, target, judge, attacker), run)


def _check_source(prompts: Prompts) -> None:
    """Refuse a text that is sent as one prompt, and an empty list.

    Raises:
        ConfigurationError: It is a text that names no file and no scenario, or there are none.
    """
    if isinstance(prompts, Sequence) and not prompts:
        raise ConfigurationError("prompts is empty; give at least one.")
    if not isinstance(prompts, str) or prompts in scenario_names() or Path(prompts).suffix:
        return
    if prompts.startswith(HUB_PREFIX) or Path(prompts).exists():
        return
    raise ConfigurationError(
        f"prompts={prompts!r} is no file, and no scenario ({', '.join(scenario_names())}). To send "
        f"this text, give a list: [{prompts!r}]."
    )


def target_test_config(
    target: str,
    prompts: str | Path | None,
    judge: str | None,
    *,
    scenario: str | Path | None,
    model: str | None,
    judge_model: str | None,
    attacker: str | None,
    attacker_model: str | None,
    attacks: str | None,
    examples: str | Path | None,
    column: str | Mapping[str, str] | None,
    threshold: float | None,
    trials: int,
    budget: Budget | Mapping[str, float] | None,
    seed: int,
) -> RunConfig:
    """Return the configuration of a test; see `redteam` for the arguments and their defaults.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    section = target_section(target, model)
    limits = asdict(budget) if isinstance(budget, Budget) else dict(budget or {})
    if attacker is None and (attacks or examples or attacker_model):
        raise ConfigurationError(
            "attacks, examples and attacker_model are of an attacker, and none is given: "
            "--attacker URL, module:function or a YAML file."
        )
    asked = prompts_section(prompts, scenario, column)
    played: dict[str, Any] = {"environment": attack_environment(attacks, examples)}
    if attacker is not None:
        played["attacker"] = attacker_section(attacker, attacker_model or model).model_dump()
        asked |= {"role": "goal"} if "file" in asked else {}
    values: dict[str, Any] = {
        "title": f"Test of {section.name}",
        "target": section.model_dump(),
        "prompts": asked,
        **played,
        "training": {"steps": 0},
        "evaluation": {"before": False, "trials": trials},
        "budget": limits,
        "seed": seed,
    }
    if threshold is not None:
        values["evaluation"]["threshold"] = threshold
    if judge is not None:
        values["moderator"] = judge_section(judge, judge_model or model).model_dump()
    elif "scenario" in asked:  # its judge, and its threshold
        values = with_scenario(values)
    if "moderator" not in values:
        raise ConfigurationError(
            "no judge: name one (--judge), or a scenario that has its own, such as secret_keepers."
        )
    return validated(RunConfig, values)


ATTACKS = "one message per prompt, or best-of-N, feedback-N, turns-N or few-shot"
"""What `attack_environment` knows."""
_COUNTED = re.compile(r"(best-of|feedback|turns)-([1-9][0-9]{0,3})")


def attack_environment(attacks: str | None, examples: str | Path | None = None) -> dict[str, Any]:
    """Return the section of the environment in which an attacker that is not trained attacks.

    Args:
        attacks: ``"best-of-8"``: the best of 8 messages, by the moderator; ``"feedback-5"``: up to
            5 conversations of one message, each with the result of the earlier ones;
            ``"turns-3"``: one conversation of 3 messages; ``"few-shot"``: one message, after
            `examples`. None is one message.
        examples: File of attacks with their rewards.

    Raises:
        ConfigurationError: An unknown name, or examples without ``"few-shot"`` or the reverse.
    """
    if (attacks == "few-shot") != (examples is not None):
        raise ConfigurationError(
            f"attacks={attacks!r}, examples={None if examples is None else str(examples)!r}; "
            "few-shot needs a file of examples, as of 'astra-rl export RUN --format attacks', and "
            "other attacks have none."
        )
    if attacks == "few-shot":
        options = {"examples": str(examples)}
        return {"type": "few_shot", "tree_width": 1, "tree_depth": 1, "options": options}
    counted = _COUNTED.fullmatch(attacks or "turns-1")
    if counted is None:
        raise ConfigurationError(f"attacks={attacks!r}; choose {ATTACKS}, for instance best-of-8.")
    kind, number = counted[1], int(counted[2])
    if kind == "best-of":
        return {"type": "best_of_n", "tree_width": number, "tree_depth": 1}
    return {
        "type": "attempts" if kind == "feedback" else "tree",
        "tree_width": 1,
        "tree_depth": number,
    }


def plan_target_test(
    config: RunConfig, target: Any = None, judge: Any = None, attacker: Any = None
) -> Plan:
    """Resolve the configuration of a test; objects of Python take the places of its sections.

    Args:
        config: The configuration.
        target: A `Target` or a function; a name is in the configuration already.
        judge: A `Moderator` or a function; a name is in the configuration already.
        attacker: A `Target` or a function; a name is in the configuration already.

    Raises:
        ConfigurationError: As `resolve`.
    """
    target, attacker = _as_target(target), _as_target(attacker)
    if callable(judge) and not isinstance(judge, Moderator):
        judge = FunctionModerator(judge)
    return resolve(
        config,
        target=target,
        moderator=judge if isinstance(judge, Moderator) else None,
        attacker=attacker,
    )


def _as_target(given: Any) -> Target | None:
    if isinstance(given, Target):
        return given
    return CallableTarget(given) if callable(given) else None


def prompts_section(
    prompts: str | Path | None,
    scenario: str | Path | None = None,
    column: str | Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the section of prompts that are given as text; see `redteam`.

    Raises:
        ConfigurationError: Both prompts and a scenario are given, or neither is.
    """
    if (prompts is None) == (scenario is None):
        given = "neither was" if prompts is None else "both were"
        raise ConfigurationError(f"give either prompts or a scenario; {given} given.")
    if scenario is not None or str(prompts) in scenario_names():
        return {"scenario": str(scenario or prompts)}
    columns = {"prompt": column} if isinstance(column, str) else dict(column or {})
    return {"file": str(prompts), **({"columns": columns} if columns else {})}


_URL = re.compile(r"https?://", re.IGNORECASE)


def is_url(given: str) -> bool:
    """Return whether a target, attacker or judge is given as the URL of an endpoint."""
    return _URL.match(given) is not None


def target_section(target: str, model: str | None) -> LocalTargetConfig | TargetConfig:
    """Return the section of a target that is given as text; see `redteam`.

    Raises:
        ConfigurationError: A URL without the name of a model, or a file that cannot be read.
    """
    if is_url(target):
        if model is None:
            raise ConfigurationError(
                f"{target} is an endpoint; name the model that it serves: --model NAME. For an API "
                "of another kind write a YAML file with type: http (docs/targets.md)."
            )
        return TargetConfig(type="openai", options={"model": model, "base_url": target})
    if is_path(target) and not target.startswith("bundled:"):
        return TargetConfig(type=target)
    return load_target(target)


def attacker_section(attacker: str, model: str | None) -> PromptedAttackerConfig:
    """Return the section of an attacker that is given as text; see `redteam`.

    Raises:
        ConfigurationError: A URL without the name of a model, or a local model.
    """
    if is_url(attacker):
        if model is None:
            raise ConfigurationError(
                f"{attacker} is an endpoint; name the model that attacks: --attacker-model NAME."
            )
        endpoint = {"model": model, "base_url": attacker}
        return PromptedAttackerConfig(type="openai", options=endpoint)
    section = load_prompted_attacker(attacker)
    if section is None:
        raise ConfigurationError(
            f"--attacker {attacker} is no URL, module:function or YAML file. A local model is "
            "trained, or evaluated untrained, by 'astra-rl train': attacker.model."
        )
    return section


def judge_section(judge: str, model: str | None) -> ModeratorConfig:
    """Return the section of a judge that is given as text; see `redteam`.

    Raises:
        ConfigurationError: A URL without the name of a model, or there is no such moderator.
    """
    if not is_url(judge):
        return load_moderator(judge)
    if model is None:
        raise ConfigurationError(
            f"{judge} is an endpoint; name the model that judges: --judge-model NAME."
        )
    endpoint = {"model": model, "base_url": judge, "temperature": 0.0}
    return ModeratorConfig(
        type="llm_judge", options={"complete": {"type": "openai", "options": endpoint}}
    )


def _name_of(given: Any) -> str:
    """Return the name, in the saved configuration, of an object of Python."""
    name = getattr(given, "__name__", type(given).__name__)
    return f"{GIVEN_IN_PYTHON}:{name if name.isidentifier() else 'function'}"


def _written(prompts: Iterable[str | Mapping[str, Any]], folder: RunFolder) -> Path:
    """Write prompts that were given in Python to the folder of the run, and return the file."""
    rows = [_row_of(each, number) for number, each in enumerate(prompts, start=1)]
    path = folder.path / PROMPTS_FILE
    write_atomic(path, "".join(json_line(row) + "\n" for row in rows))
    return path


def _row_of(given: Any, number: int) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if not isinstance(given, str):  # a missing cell of a table would be sent as "nan"
        raise ConfigurationError(
            f"prompt {number} is {type(given).__name__}; give a text, a Conversation or a mapping."
        )
    return _row(Conversation.of(given))


def _row(prompt: Conversation) -> dict[str, Any]:
    if prompt.turns:
        raise ConfigurationError("a prompt of a test is a text without earlier turns.")
    return {
        "prompt": prompt.prompt,
        **({} if prompt.system is None else {"system": prompt.system}),
        **({"facts": dict(prompt.facts)} if prompt.facts else {}),
    }
