import json
import logging
import math
import sys
from pathlib import Path

import accelerate.tracking  # noqa: F401, looks for packages before a fake is one
import pytest
import yaml
from tests.cli.running import astra_rl

from astra_rl.config.loading import parse_config
from astra_rl.errors import ConfigurationError, MissingDependencyError
from astra_rl.testing import tiny_model
from astra_rl.training import trackers
from astra_rl.training.trackers import (
    HistoryTracker,
    JSONLTracker,
    LogTracker,
    MultiTracker,
    NullTracker,
    Tracker,
    closed_on_error,
    make_tracker,
)


def test_the_null_tracker_forgets(capsys, caplog):
    NullTracker().log({"loss": 1.0}, 1)
    NullTracker().close()
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


def test_the_log_tracker_writes_one_line_per_step(caplog):
    with caplog.at_level(logging.INFO, "astra_rl"):
        LogTracker().log({"loss": 0.123456, "reward": math.nan}, 7)
    assert caplog.messages == ["step 7  loss=0.1235  reward=nan"]


def test_json_lines_are_flushed_at_once_and_appended_to(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    for step in (1, 2):
        tracker = JSONLTracker(path)
        tracker.log({"loss": math.nan if step == 1 else 0.5}, step)
        assert len(path.read_text().splitlines()) == step
        tracker.close()
        tracker.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]


def test_history_keeps_rows():
    tracker = HistoryTracker()
    tracker.log({"loss": 0.5}, 3)
    assert tracker.rows == [{"step": 3.0, "loss": 0.5}]


def test_several_trackers_get_the_same():
    first, second = HistoryTracker(), HistoryTracker()
    both = MultiTracker([first, second])
    both.log({"loss": 1.0}, 1)
    both.close()
    assert first.rows == second.rows == [{"step": 1.0, "loss": 1.0}]


class Closing(HistoryTracker):
    """Keeps whether it is closed."""

    is_closed = False

    def close(self):
        self.is_closed = True


class Broken(HistoryTracker):
    """Cannot be closed."""

    def close(self):
        raise OSError("no connection")


def test_a_tracker_that_cannot_be_closed_leaves_no_other_open():
    first, last = Closing(), Closing()
    with pytest.raises(OSError, match="no connection"):
        MultiTracker([first, Broken(), last]).close()
    assert first.is_closed
    assert last.is_closed


def test_trackers_stay_open_unless_the_block_raises():
    tracker = Closing()
    with closed_on_error([tracker]) as several:
        several.log({"loss": 1.0}, 1)
    assert tracker.rows == [{"step": 1.0, "loss": 1.0}]
    assert not tracker.is_closed
    with pytest.raises(KeyboardInterrupt), closed_on_error([tracker]):
        raise KeyboardInterrupt
    assert tracker.is_closed


def test_a_tracker_that_cannot_be_made_leaves_no_other_open():
    tracker = Closing()

    def made():
        yield tracker
        raise ConfigurationError("no such project")

    with pytest.raises(ConfigurationError, match="no such project"), closed_on_error(made()):
        pass
    assert tracker.is_closed


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("WandbTracker", ()),
        ("TensorBoardTracker", ("folder",)),
        ("TrackioTracker", ()),
        ("MLflowTracker", ("name", "id", {})),
    ],
)
def test_a_tracker_whose_package_is_missing_names_the_extra(name, arguments, monkeypatch):
    def absent(module, *, extra):
        raise MissingDependencyError(f"{module} is not installed: extra {extra!r}")

    monkeypatch.setattr(trackers, "require", absent)
    with pytest.raises(MissingDependencyError, match=r"extra '(wandb|tensorboard|trackio|mlflow)'"):
        getattr(trackers, name)(*arguments)


def test_wandb_gets_each_step_and_the_end(monkeypatch):
    calls = []

    class Run:
        def log(self, metrics, step):
            calls.append((metrics, step))

        def finish(self):
            calls.append("finish")

    class Wandb:
        @staticmethod
        def init(**arguments):
            calls.append(arguments)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    tracker = trackers.WandbTracker(project="p")
    tracker.log({"loss": 1.0}, 4)
    tracker.close()
    assert calls == [{"project": "p"}, ({"loss": 1.0}, 4), "finish"]


def test_a_tracker_of_one_s_own_needs_only_log():
    class Printing(Tracker):
        def log(self, metrics, step):
            print(step, dict(metrics))

    Printing().close()
    with pytest.raises(TypeError, match="abstract"):
        Tracker()


class FakeWandb:
    """The part of the package wandb that the tracker uses."""

    def __init__(self):
        self.started, self.logged, self.finished, self.tables = [], [], 0, []

    def init(self, **arguments):
        self.started.append(arguments)
        return self

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1

    def Table(self, *, columns, data, dataframe):
        self.tables.append((columns, data))
        return "table"


@pytest.mark.slow
def test_report_to_sends_the_metrics_of_a_run_and_of_its_resume(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("attacker", "target"):
        model, tokenizer = tiny_model("llama", window=64)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "p.txt").write_text("hello\nwho are you\n")
    (tmp_path / "q.txt").write_text("a colour\n")
    settings = {
        "attacker": {"model": "attacker", "max_new_tokens": 4},
        "target": {"model": "target", "max_new_tokens": 4},
        "moderator": {"type": "refusal"},
        "prompts": {"file": "p.txt", "test_file": "q.txt"},
        "environment": {"type": "single_turn", "tree_width": 2},
        "training": {"steps": 1, "episodes_per_step": 1, "save_best": False},
        "evaluation": {"before": False},
        "report_to": ["wandb", "none", "wandb"],
        "log_completions": True,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    done = astra_rl("train", "c.yaml", "-o", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (step, metrics), table = wandb.logged
    assert step == 1
    assert table == (1, {"conversations": "table"})
    ((columns, rows),) = wandb.tables
    assert columns == ["step", "prompt", "attack", "response", "reward"]
    assert [len(rows), {row[0] for row in rows}] == [2, {1}]
    assert "loss" in metrics
    (begun,) = wandb.started
    assert (begun["name"], begun["dir"]) == ("run", str(tmp_path / "run"))
    assert begun["config"]["attacker"]["model"] == "attacker"
    assert begun["resume"] is None
    assert wandb.finished == 1
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = astra_rl("train", "c.yaml", "--set", "report_to=tensorboard", cwd=tmp_path)
    assert done.returncode == 2
    assert "tensorboard is not installed" in done.stderr
    assert not (tmp_path / "runs").exists()


HOSTILE_ROW = (3, "hello", "<img src=x> | [a](javascript:b)", "\u241b[2J `x`", math.nan)


@pytest.mark.slow
def test_tensorboard_gets_numbers_and_a_table_of_escaped_texts(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = make_tracker("tensorboard", folder=tmp_path, run="r", settings={}, resumes=False)
    tracker.log({"loss": 0.5, "reward": math.nan}, 3)
    tracker.log_conversations([HOSTILE_ROW], 3)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(3, 0.5)]
    (table,) = events.Tensors("conversations/text_summary")
    shown = table.tensor_proto.string_val[0].decode()
    assert "| ` <img src=x>" in shown  # in a code span, which shows it as text
    assert len(shown.strip().splitlines()) == 3
    assert shown.splitlines()[2].replace("\\|", "").count("|") == 6


@pytest.mark.slow
def test_mlflow_gets_parameters_numbers_and_tables_and_continues_a_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.create_experiment("mine", artifact_location=(tmp_path / "artifacts").as_uri())
    for step, resumes in ((1, False), (2, True)):
        tracker = make_tracker(
            "mlflow",
            folder=tmp_path / "run",
            run="id",
            settings={"training": {"lr": step}},
            resumes=resumes,
        )
        tracker.log({"loss": 0.5, "reward": math.nan}, step)
        tracker.log_conversations([HOSTILE_ROW], step)
        tracker.close()
    (run,) = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    assert run.info.run_name == "run"
    assert run.data.params == {"training.lr": "1"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert sorted(each.step for each in history) == [1, 2]
    table = mlflow.load_table("conversations/step-00000002.json", run_ids=[run.info.run_id])
    assert table["attack"].tolist() == [HOSTILE_ROW[2]]


@pytest.mark.slow
def test_trackio_gets_numbers_and_tables(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    calls = []
    monkeypatch.setattr(trackio, "init", lambda **given: calls.append(given) or Recorder(calls))
    tracker = make_tracker("trackio", folder=tmp_path, run="r", settings={"a": 1}, resumes=True)
    tracker.log({"loss": 0.5}, 1)
    tracker.log_conversations([HOSTILE_ROW], 1)
    tracker.close()
    begun, logged, table, end = calls
    assert (begun["project"], begun["resume"], begun["config"]) == ("astra-rl", "allow", {"a": 1})
    assert logged == ({"loss": 0.5}, 1)
    assert isinstance(table[0]["conversations"], trackio.Table)
    assert end == "finish"


class Recorder:
    """A run of Trackio that writes down its calls."""

    def __init__(self, calls):
        self.calls = calls

    def log(self, metrics, step):
        self.calls.append((metrics, step))

    def finish(self):
        self.calls.append("finish")


def test_one_name_or_several_or_none_is_given():
    text = (
        "attacker: {model: a}\ntarget: {model: b}\nmoderator: {type: refusal}\n"
        "prompts: {scenario: planted_secrets}\n"
    )
    for given, names in (
        ("wandb", ("wandb",)),
        ("[tensorboard, wandb]", ("tensorboard", "wandb")),
        ("none", ()),
        ("[]", ()),
    ):
        assert parse_config(text, [f"report_to={given}"], source="test").trackers == names
    folder, settings = Path("x"), {}
    quiet = make_tracker("none", folder=folder, run="r", settings=settings, resumes=False)
    assert isinstance(quiet, NullTracker)


def test_wandb_continues_the_run_of_a_resume(monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for resumes in (False, True):
        make_tracker("wandb", folder=Path("runs/x"), run="id", settings={}, resumes=resumes)
    assert [each["id"] for each in wandb.started] == ["id", "id"]
    assert [each["resume"] for each in wandb.started] == [None, "allow"]
