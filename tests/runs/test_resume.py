"""What a run may go on with, and what it says when it may not."""

import hashlib
import json
import logging
import signal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from astra_rl.config.loading import parse_config
from astra_rl.errors import AstraError, ConfigurationError, InterruptedRunError, StorageError
from astra_rl.infra.checkpointing import remove_leftovers, replace_folder
from astra_rl.runs.folder import MANIFEST_VERSION, RunFolder
from astra_rl.runs.provenance import git_revision, versions
from astra_rl.runs.resume import (
    check_can_run_in,
    check_machine,
    check_same_files,
    check_same_prompts,
    check_same_run,
    check_versions,
    config_digest,
    kept_metrics,
    resumable_errors,
)
from astra_rl.runs.trainer import machine_of
from astra_rl.testing import ScriptedModerator, ToyProblem

CONFIG = """
attacker: {model: a}
target: {model: b}
moderator: {type: profanity}
prompts: {file: c.txt}
"""


@pytest.fixture
def config():
    return parse_config(CONFIG, source="the test")


@pytest.fixture
def folder(tmp_path, config):
    run = RunFolder(tmp_path / "run")
    run.write_text(run.config, config.to_yaml())
    return run


def test_a_setting_that_came_with_a_later_version_is_no_change(folder, config):
    older = yaml.safe_load(config.to_yaml())
    del older["training"]["save_total_limit"]
    folder.write_text(folder.config, yaml.safe_dump(older))
    check_same_run(config.to_yaml(), folder)


@pytest.mark.slow
def test_a_configuration_that_was_edited_in_the_folder_of_the_run_is_refused(folder, config):
    digest = config_digest(folder)
    check_same_run(config.to_yaml(), folder, digest=digest)
    edited = parse_config(CONFIG, ["training.lr=0.5"], source="the test")
    folder.write_text(folder.config, edited.to_yaml())
    with pytest.raises(ConfigurationError, match="was edited since its newest state"):
        check_same_run(edited.to_yaml(), folder, digest=digest)
    check_same_run(edited.to_yaml(), folder, digest=digest, force=True)


def test_a_damaged_configuration_is_a_difference_and_no_traceback(folder, config):
    folder.write_text(folder.config, "{: - [")
    with pytest.raises(ConfigurationError, match="another configuration"):
        check_same_run(config.to_yaml(), folder)


@pytest.mark.parametrize(
    "now",
    [
        [{"name": "a", "sha256": "2"}],
        [{"name": "a", "sha256": "1"}, {"name": "b", "sha256": "1"}],
        [{"name": "c", "sha256": "1"}],
    ],
)
def test_prompts_that_changed_came_or_went_are_refused(folder, now):
    prompts = [{"name": "a", "sha256": "1"}]
    folder.write_json(folder.manifest, {"schema_version": 1, "prompts": prompts})
    check_same_prompts(prompts, folder)
    with pytest.raises(ConfigurationError, match="have changed since"):
        check_same_prompts(now, folder)


def test_files_that_changed_are_refused_and_a_run_that_names_none_is_not(folder):
    check_same_files({"a": "1"}, folder)
    folder.write_json(folder.manifest, {"schema_version": 1})
    check_same_files({"a": "1"}, folder)
    folder.write_json(folder.manifest, {"schema_version": 1, "files": {"a": "1", "b": "1"}})
    check_same_files({"a": "1"}, folder)
    with pytest.raises(ConfigurationError, match="the files 'b' have changed since"):
        check_same_files({"a": "1", "b": "2"}, folder)


def test_other_versions_are_said(caplog):
    check_versions(versions())
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        check_versions({**versions(), "torch": "1.0"})
    assert "torch: '1.0' then" in caplog.text


def test_how_calls_are_made_may_change(tmp_path):
    """A message advises to raise ``give_up_after``."""

    def config(count):
        calls = {"model": "m", "base_url": "http://localhost:1", "calls": {"give_up_after": count}}
        text = CONFIG.replace("{model: b}", json.dumps({"type": "openai", "options": calls}))
        return parse_config(text, source="the test")

    run = RunFolder(tmp_path / "run")
    run.write_text(run.config, config(20).to_yaml())
    digest = config_digest(run)
    check_same_run(config(40).to_yaml(), run, digest=digest)
    assert parse_config(run.config.read_text(), source="x") == config(40)
    check_same_run(config(40).to_yaml(), run, digest=digest)


def test_a_state_whose_checksum_includes_how_calls_are_made_is_of_its_run(folder, config):
    """As earlier versions wrote it, which had no `harden`, `report_to` and `log_completions`."""
    settings = yaml.safe_load(config.to_yaml())
    left_out = ("budget", "cache", "harden", "log_completions", "report_to")
    old = {name: value for name, value in settings.items() if name not in left_out}
    text = yaml.safe_dump(old, sort_keys=True)
    check_same_run(config.to_yaml(), folder, digest=hashlib.sha256(text.encode()).hexdigest())


def test_another_machine_is_said(caplog):
    now = machine_of(ToyProblem(ScriptedModerator({})))
    assert now["threads"] == "1"
    assert (now["dtype"], now["device"]) == ("float32", "cpu")
    check_machine({}, now)  # a state of an earlier version
    check_machine(now, now)
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        check_machine({**now, "threads": "4", "dtype": "bfloat16"}, now)
    assert "not bit-exactly" in caplog.text
    assert "threads: '4' then, '1' now" in caplog.text
    assert "dtype: 'bfloat16' then, 'float32' now" in caplog.text


def test_a_manifest_of_a_newer_version_is_refused_and_an_older_one_read(folder):
    newer = MANIFEST_VERSION + 1
    folder.write_json(folder.manifest, {"schema_version": newer})
    with pytest.raises(ConfigurationError, match=f"newer version of astra-rl .schema {newer}"):
        folder.read_manifest()
    folder.write_json(folder.manifest, {"schema_version": 0, "title": "old"})
    assert folder.read_manifest()["title"] == "old"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_for_a_manifest_or_metrics_are_read_or_refused(tmp_path_factory, data):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.manifest.write_bytes(data)
    folder.metrics.write_bytes(data)
    with pytest.raises(AstraError):
        folder.read_manifest()
    assert kept_metrics(folder, 5) == []


def test_metrics_after_the_state_and_torn_lines_are_dropped(folder):
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    folder.write_text(folder.metrics, text + '12\n{"step": "1"}\n["step"]\n{"st')
    kept = kept_metrics(folder, 2)
    assert [row["step"] for row in kept] == [1, 2]
    assert folder.metrics.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        StorageError("cannot write a: full. What was saved before is still there."),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_an_error_that_says_how_to_go_on(folder, error):
    with (
        pytest.raises(StorageError, match=r"(intact|still there).*astra-rl resume"),
        resumable_errors(folder),
    ):
        raise error


def test_a_run_that_could_not_even_begin_is_begun_again(tmp_path):
    folder = RunFolder(tmp_path / "new")
    match = r"intact.*Start the same command again"
    with pytest.raises(StorageError, match=match), resumable_errors(folder):
        raise OSError(28, "No space left on device")
    (folder.path / ".config.yaml.12.tmp").write_text("half of it")
    check_can_run_in(folder.path)
    (folder.path / "mine.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="is not empty"):
        check_can_run_in(folder.path)


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(folder):
    with pytest.raises(FileNotFoundError), resumable_errors(folder):
        raise FileNotFoundError(2, "no such file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_training_ends_at_once_and_says_how_to_go_on(folder, number):
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="astra-rl resume"), resumable_errors(folder):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_what_a_killed_process_left_of_a_folder_is_put_right(tmp_path):
    with replace_folder(tmp_path / "last") as temporary:
        (temporary / "weights").write_text("old")
    (tmp_path / ".last-abc12_x").mkdir()  # written in part
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    (tmp_path / "last").rename(tmp_path / ".last-abc12_x.old")  # between the two renames
    remove_leftovers(tmp_path)
    assert (tmp_path / "last" / "weights").read_text() == "old"
    remove_leftovers(tmp_path / "nowhere")


class TestGitRevision:
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def make(self, tmp_path, head, **files):
        (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
        (tmp_path / ".git" / "HEAD").write_text(head)
        for name, text in files.items():
            (tmp_path / ".git" / name.replace("__", "/").replace("_", "-")).write_text(text)
        return tmp_path

    def test_a_branch_a_packed_one_and_a_detached_head(self, tmp_path):
        ref = "ref: refs/heads/main\n"
        branch = self.make(tmp_path / "a", ref, refs__heads__main=self.COMMIT + "\n")
        packed = self.make(
            tmp_path / "b", ref, packed_refs=f"# pack\n{self.COMMIT} refs/heads/main\n"
        )
        detached = self.make(tmp_path / "c", self.COMMIT + "\n")
        (branch / "inner").mkdir()
        for place in (branch, branch / "inner", packed, detached):
            assert git_revision(place) == self.COMMIT

    def test_nothing_but_the_name_of_a_commit_is_ever_returned(self, tmp_path):
        """What stands in the files of git may be anything, an address with a password too."""
        url = "https://user:token@example.org/repository.git"
        assert git_revision(self.make(tmp_path / "a", url)) is None
        ref = "ref: refs/heads/main\n"
        assert git_revision(self.make(tmp_path / "b", ref, refs__heads__main=url)) is None
        assert git_revision(self.make(tmp_path / "c", ref)) is None
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / ".git").write_bytes(b"gitdir: \xff")
        assert git_revision(tmp_path / "d") is None
