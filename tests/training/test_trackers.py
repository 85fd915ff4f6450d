import json
import logging
import math

import pytest

from astra_rl.errors import MissingDependencyError
from astra_rl.training import trackers
from astra_rl.training.trackers import (
    HistoryTracker,
    JSONLTracker,
    LogTracker,
    MultiTracker,
    NullTracker,
    Tracker,
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


@pytest.mark.parametrize(
    ("name", "arguments"), [("WandbTracker", ()), ("TensorBoardTracker", ("folder",))]
)
def test_a_tracker_whose_package_is_missing_names_the_extra(name, arguments, monkeypatch):
    def absent(module, *, extra):
        raise MissingDependencyError(f"{module} is not installed: extra {extra!r}")

    monkeypatch.setattr(trackers, "require", absent)
    with pytest.raises(MissingDependencyError, match=r"extra '(wandb|tensorboard)'"):
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

    monkeypatch.setattr(trackers, "require", lambda module, *, extra: Wandb)
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
