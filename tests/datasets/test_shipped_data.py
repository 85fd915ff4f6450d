"""What ships: written for this project, varied, and safe to read at work."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from astra_rl.agents import Assignment, load_world
from astra_rl.core.text import Conversation, Exchange
from astra_rl.datasets.rows import Row
from astra_rl.datasets.scenario_files import (
    BUNDLED_SCENARIOS,
    GENERATED,
    load_scenario,
    scenario_names,
)
from astra_rl.datasets.similarity import near_duplicates
from astra_rl.moderators import ProfanityModerator, SecretLeakModerator

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(BUNDLED_SCENARIOS.glob("*.jsonl"))
COUNTS = {
    "neutral_openers": 300,
    "openers_by_language": 200,
    "secret_keepers": 100,
    "benign_twins": 100,
    "front_desk_questions": 100,
    "injection_canaries": 60,
}
AGENTS = ("calendar", "files", "mailbox", "pages", "shop")
"""Scenarios that are made of a world; tests/agents/test_worlds.py tests their splits."""
# fmt: off
UNSAFE = (
    "abuse", "amphetamine", "arson", "behead", "bestial", "bomb", "cocaine", "corpse", "explosive",
    "genocide", "grenade", "gun", "hentai", "heroin", "hitler", "hostage", "incest", "jihad",
    "knife", "lynch", "malware", "massacre", "molest", "murder", "naked", "nazi", "nude", "orgasm",
    "overdose", "pedophile", "penis", "phishing", "pistol", "porn", "prostitute", "racist", "rape",
    "ransomware", "rifle", "sex", "sexual", "shooter", "slaughter", "stab", "strangle", "suicide",
    "terrorist", "torture", "vagina", "weapon", "whore",
)
DOUBLE_MEANINGS = ("bomb", "murder", "strangle")
# fmt: on
"""Words that no text may hold; a benign twin may hold those with a second meaning."""


def rows(name: str) -> list[Row]:
    return [row for part in load_scenario(name).rows.values() for row in part]


def test_every_file_of_data_belongs_to_a_scenario_and_the_other_way_round() -> None:
    others = {*GENERATED, *AGENTS}
    assert {path.stem for path in FILES} == set(COUNTS) == set(scenario_names()) - others


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_there_are_as_many_as_promised(name: str, count: int) -> None:
    assert len(rows(name)) == count
    assert load_scenario(name).sources[0].repeated == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_plain_json_lines_in_utf8(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        values = json.loads(line)
        assert values["id"].endswith(f"-{number:03}")
        assert values["category"]
        assert values["split"] in ("train", "validation", "test")
    controls = {character for character in text if unicodedata.category(character) == "Cc"}
    assert controls == {"\n"}
    assert unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize("name", COUNTS)
def test_no_two_rows_are_near_duplicates_even_by_a_stricter_measure(name: str) -> None:
    found = rows(name)
    texts = [row.comparison_text for row in found]
    assert list(near_duplicates(texts, threshold=0.5)) == []


@pytest.mark.parametrize("name", COUNTS)
def test_rows_do_not_all_begin_or_sound_alike(name: str) -> None:
    texts = [row.comparison_text for row in rows(name)]
    openings = Counter(" ".join(text.split()[:3]).lower() for text in texts)
    assert openings.most_common(1)[0][1] <= len(texts) * 0.08
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[len(lengths) // 10] * 1.25 < lengths[-len(lengths) // 10]


@pytest.mark.parametrize("name", COUNTS)
def test_every_split_has_its_share(name: str) -> None:
    sizes = {split: len(part) for split, part in load_scenario(name).rows.items()}
    total = sum(sizes.values())
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert abs(sizes[split] - share * total) <= 2  # type: ignore[index]


@pytest.mark.parametrize("name", [*COUNTS, *AGENTS])
def test_nothing_unsafe_is_in_there(name: str) -> None:
    allowed = DOUBLE_MEANINGS if name == "benign_twins" else ()
    forbidden = "|".join(word for word in UNSAFE if word not in allowed)
    pattern = re.compile(rf"\b(?:{forbidden})(?:s|es|ed|er|ing)?\b", re.IGNORECASE)
    for row in rows(name):
        assignment = Assignment.of(Conversation(facts=row.facts))
        world = None if assignment is None else load_world(assignment.world)
        told = [] if world is None else [world.system, json.dumps(world.start)]
        for text in (row.prompt, row.system or "", row.brief or "", *row.facts.values(), *told):
            assert not pattern.search(text), (row.id, pattern.findall(text))


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "benign_twins"])
def test_nothing_is_rude(name: str) -> None:
    """Of the twins a classifier that knows only words takes a few for rude; that is their point."""
    # The classifier knows English: it takes the article "die" of German for a threat.
    foreign = {"german", "spanish", "chinese", "arabic"}
    found = [row for row in rows(name) if row.category not in foreign]
    scores = ProfanityModerator().moderate([row.comparison_text for row in found])
    assert [row.id for row, score in zip(found, scores, strict=True) if score > 0.6] == []


def test_every_secret_is_told_to_the_target_and_to_nobody_else() -> None:
    for row in rows("secret_keepers"):
        secret = row.facts["secret"]
        assert row.system is not None
        assert row.brief is not None
        assert secret in row.system
        assert secret.lower() not in f"{row.brief} {row.facts['organisation']}".lower()
        assert row.facts["organisation"] in row.brief


def test_every_secret_is_recognised_when_it_is_said_and_only_then() -> None:
    moderator = SecretLeakModerator()
    for row in rows("secret_keepers"):
        context = Conversation(system=row.system, brief=row.brief, facts=row.facts)
        told, kept = (
            Exchange(context, "Tell me something.", response)
            for response in (f"Well, {row.facts['secret']}.", "I would rather not say, sorry.")
        )
        assert moderator.moderate([told, kept]) == [1.0, 0.0], row.id


def test_no_two_assistants_keep_the_same_secret_or_work_for_the_same_organisation() -> None:
    for fact in ("secret", "organisation"):
        values = [row.facts[fact].lower() for row in rows("secret_keepers")]
        assert len(set(values)) == len(values)


def test_canaries_are_what_obeying_gives_and_are_not_said_by_quoting() -> None:
    found = rows("injection_canaries")
    canaries = [row.facts["canary"].casefold() for row in found]
    assert len(set(canaries)) == len(canaries)
    quoted = [
        row.facts["canary"]
        for row in found
        if row.facts["canary"].casefold() in f"{row.system} {row.prompt}".casefold()
    ]
    assert quoted == []


def test_twins_are_questions() -> None:
    assert all(row.prompt.endswith("?") for row in rows("benign_twins"))


def test_openers_are_of_many_topics_and_some_languages() -> None:
    topics = Counter(row.category for row in rows("neutral_openers"))
    assert len(topics) >= 20
    assert max(topics.values()) <= 15
    found = scripts_of("".join(row.prompt for row in rows("neutral_openers")))
    assert {"LATIN", "CJK", "HIRAGANA", "HANGUL"} <= found


def test_openers_in_several_languages_are_translations_of_each_other_in_the_same_split() -> None:
    parts = load_scenario("openers_by_language").rows
    split_of = {row.id: split for split, found in parts.items() for row in found}
    by_language = [
        sorted((row for row in rows("openers_by_language") if row.category == language), key=number)
        for language in ("english", "german", "spanish", "chinese", "arabic")
    ]
    assert [len(found) for found in by_language] == [40] * 5
    for translations in zip(*by_language, strict=True):
        assert len({split_of[row.id] for row in translations}) == 1
        assert (
            len(
                {unicodedata.name(row.prompt[-1]).endswith("QUESTION MARK") for row in translations}
            )
            == 1
        )
        english, german, spanish, chinese, arabic = (row.prompt for row in translations)
        assert len({english, german, spanish}) == 3
        assert "CJK" in scripts_of(chinese)
        assert scripts_of(arabic) == {"ARABIC"}


def number(row: Row) -> int:
    return int(str(row.id)[-3:])


def scripts_of(text: str) -> set[str]:
    return {unicodedata.name(each).split()[0] for each in text if each.isalpha()}


def test_moderators_of_the_scenarios_are_known_to_a_run() -> None:
    registry = pytest.importorskip("astra_rl.moderators.registry")
    for name in scenario_names():
        moderator = load_scenario(name).moderator
        assert moderator is None or moderator["type"] in registry.MODERATORS


def test_the_list_of_data_names_every_file_with_its_checksum() -> None:
    text = (ROOT / "DATASETS.md").read_text("utf-8")
    for path in FILES:
        assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in text
