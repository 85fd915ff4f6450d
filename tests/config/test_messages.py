"""Messages of wrong settings use the words of this project, whatever the setting and the value."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from astra_rl.cli.topics import REGISTRIES
from astra_rl.config.construct import bind
from astra_rl.config.loading import parse_config, validated
from astra_rl.config.parts import PartResolver
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.config.sections import keys_of, section_class
from astra_rl.config.signatures import parameters_of
from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.infra.importing import load_object

FOREIGN = re.compile(
    r"pydantic|Input should|Field required|Extra inputs|validation error|Value error|Undefined|"
    r"default factory|\\bvalid (?:string|integer|number|boolean|list|dictionary|tuple)|type=",
    re.IGNORECASE,
)
"""Words of pydantic."""
SETTINGS = yaml.safe_load("""
attacker: {model: a, lora: {rank: 4}, extract: {tag: x}}
target: {model: b}
moderator: {type: keyword, options: {words: [a]}}
prompts: {scenario: planted_secrets}
evaluation: {judge: {type: refusal}}
environment: {type: tree, curriculum: {type: upper_confidence}}
""")
VALUES: list[Any] = [
    *(None, True, 5, -1, 1.5, math.nan, math.inf, 10**30, "text", "", [], [1], ["a"], [[1]], {}),
    *({"a": 1}, {"a": None}, {1: 2}, datetime.date(2020, 1, 1), b"x"),
]


def places(section: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the places of all keys of a section and of the sections in it."""
    for name, key in keys_of(section).items():
        yield (*place, name)
        inner = section_class(key.type)
        if inner is not None and len(place) < 2:
            yield from places(inner, (*place, name))


def with_value(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    settings = copy.deepcopy(SETTINGS)
    section = settings
    for name in place[:-1]:
        section = section.setdefault(name, {})
    section[place[-1]] = value
    return settings


@pytest.mark.slow
def test_wrong_settings_are_explained_without_the_words_of_a_library() -> None:
    messages = set()
    for place in dict.fromkeys(places(RunConfig)):
        for value in VALUES:
            try:
                validated(RunConfig, with_value(place, value))
            except ConfigurationError as error:
                messages.add(str(error))
    assert len(messages) > 500
    assert not [each for each in messages if FOREIGN.search(each)]


@pytest.mark.slow
def test_wrong_options_are_explained_without_the_words_of_a_library() -> None:
    messages = set()
    for path, supplied in REGISTRIES.values():
        for name, factory in load_object(path).items():
            for option in parameters_of(factory, supplied=supplied):
                for value in VALUES[::3]:
                    try:
                        bind(name, factory, {option: value}, PartResolver(), supplied=supplied)
                    except AstraError as error:
                        messages.add(str(error))
    assert len(messages) > 200
    assert not [each for each in messages if FOREIGN.search(each)]


MINIMAL = (
    "attacker: {model: a}\ntarget: {model: b}\nmoderator: {type: refusal}\n"
    "prompts: {scenario: planted_secrets}\n"
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("harden.safe_replies=[]", "[] given; it must be a list of at least 1."),
        ("training.steps=1e30", "training.steps: 1e+30 given; it must be a whole number."),
        ("training.steps=5000000000", "it must be at most 1000000000."),
        (
            "report_to=comet",
            "it must be one of 'none', 'mlflow', 'tensorboard', 'trackio' or 'wandb'",
        ),
        ("attacker={type: openai, options: {}, model: a}", "attacker.model: unknown key."),
        ("attacker=5", "attacker: 5 given; it must be a section of names and values."),
    ],
)
def test_what_is_allowed_is_said(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as found:
        parse_config(MINIMAL, [override], source="test")
    assert not FOREIGN.search(str(found.value))
    assert str(found.value).count("\n") == 1  # nothing but the error and its file


def test_a_list_that_is_too_short_for_an_option_is_no_defect() -> None:
    options = "{type: trajectory_balance, options: {temperatures: [1]}}"
    config = parse_config(MINIMAL, [f"algorithm={options}"], source="test")
    with pytest.raises(ConfigurationError, match=r"temperatures: \[1\] given; it must be a longer"):
        resolve(config)


def test_options_left_from_another_type_are_left_out_by_the_command_in_the_message() -> None:
    text = MINIMAL + "algorithm: {type: grpo, options: {scale: batch}}\n"
    config = parse_config(text, ["algorithm.type=rloo"], source="test")
    with pytest.raises(ConfigurationError, match=r"options\.scale: unknown") as found:
        resolve(config)
    (form,) = re.findall(r"--set '(.*?)'", str(found.value))
    assert form == "algorithm={type: rloo}"
    resolve(parse_config(text, [form], source="test"))


def test_a_damaged_record_is_explained_without_its_text() -> None:
    attempt = Attempt.make(
        run="r", opening="o", target="t", attacker="a", turns=[], judge="j", error="no"
    )
    for changes, message in (
        ({"outcome": "SECRET"}, "outcome: it must be one of 'success', "),
        ({"threshold": 2}, "threshold: it must be at most 1"),
        ({"run": None}, "run: it must be text"),
    ):
        data = {**attempt.model_dump(mode="json"), **changes}
        with pytest.raises(ConfigurationError, match=re.escape(message)) as found:
            Attempt.from_json(json.dumps(data))
        assert "SECRET" not in str(found.value)
        assert not FOREIGN.search(str(found.value))
