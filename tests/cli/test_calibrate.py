"""``astra-rl calibrate``, in this process as its entry point would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from astra_rl.cli.main import app
from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.judges.calibration import calibration_of, example_labels
from astra_rl.moderators import KeywordModerator, RefusalModerator

pytestmark = pytest.mark.slow


def calibrate(*arguments: str | Path) -> str:
    """Run the command; returns what it printed, raises what it raised."""
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)], env={"COLUMNS": "200"})
    if isinstance(done.exception, AstraError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_moderator_by_name_is_measured_and_the_result_kept(tmp_path: Path) -> None:
    printed = calibrate("refusal", "--labels", example_labels(), "-o", tmp_path)
    assert "RefusalModerator at threshold 0.5" in printed
    assert "AUROC" in printed
    assert "60 rows, 0 with tied labels, 0 unscored" in printed
    kept = calibration_of(RefusalModerator(), tmp_path)
    assert kept is not None
    assert f"{kept['estimates']['accuracy']['value']:.3f}" in printed
    assert len(list(tmp_path.glob("*.svg"))) == 1


def test_several_moderators_are_compared_and_one_may_be_a_file(tmp_path: Path) -> None:
    config = {
        "type": "max",
        "of": [
            {"type": "keyword", "options": {"words": ["can't", "cannot"]}},
            {"type": "keyword", "options": {"patterns": ["nicht"]}},
        ],
    }
    file = tmp_path / "words.yaml"
    file.write_text(yaml.safe_dump(config))
    folder = tmp_path / "out"
    printed = calibrate("refusal", file, "--labels", example_labels(), "-o", folder)
    assert "MaxModerator" in printed
    assert "Krippendorff's alpha, decisions" in printed
    assert len(list(folder.glob("*.json"))) == 2


def test_the_section_of_a_runs_configuration_serves_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    section = {"type": "keyword", "options": {"words": ["sorry"]}}
    file.write_text(yaml.safe_dump({"moderator": section, "seed": 0}))
    calibrate(file, "--labels", example_labels(), "-o", tmp_path, "--threshold", "1")
    kept = calibration_of(KeywordModerator(["sorry"]), tmp_path)
    assert kept is not None
    assert kept["threshold"] == 1


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"said": "no", "why": 1, "q": "x"}, {"said": "yes", "why": 0, "q": "y"}]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    options = ["--text", "said", "--label", "why", "--attack", "q"]
    assert "2 rows" in calibrate("refusal", "--labels", file, *options, "-o", tmp_path)


@pytest.mark.parametrize(
    ("moderator", "message"),
    [
        ("refusl", "Did you mean 'refusal'"),
        ("hf_classifier", r"moderator.options.label: missing"),
        ("qwen_guard", r"moderator.options.controversial: missing"),
        ("max", "max combines other moderators; list them under 'of'"),
        ("nowhere.yaml", r"cannot read the moderator nowhere\.yaml"),
    ],
)
def test_a_moderator_that_cannot_be_made_says_why_before_anything_is_loaded(
    tmp_path: Path, moderator: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        calibrate(moderator, "--labels", example_labels(), "-o", tmp_path)


def test_a_bad_file_of_labels_is_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("text,label\na,1\nb,often\n")
    with pytest.raises(ConfigurationError, match="line 3: label 'often'"):
        calibrate("refusal", "--labels", file, "-o", tmp_path)
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("text", ["[1]", "type: 3", "type: keyword\nof: [{type: refusal}]", "a: ["])
def test_a_file_that_is_no_moderator_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        calibrate(file, "--labels", example_labels(), "-o", tmp_path)
