"""Callbacks of a plain `Trainer`: events, schedules, early stopping, records and exact resume."""

import contextlib
import copy
import json
import math

import pytest
import torch

from astra_rl import GRPO, ASTEnvironment, Evaluator, Trainer, TrainingConfiguration
from astra_rl.errors import (
    BudgetSpentError,
    ConfigurationError,
    EndpointError,
    NonFiniteLossError,
    StorageError,
    TrainingError,
)
from astra_rl.rewards.base import RESPONSE_HARM
from astra_rl.testing import ScriptedModerator, ToyProblem
from astra_rl.training.callbacks import (
    AttackMetrics,
    AttemptRecorder,
    BestBySuccess,
    Checkpointing,
    EarlyStopping,
    Evaluation,
    LearningRateSchedule,
    PrintProgress,
    StepMetrics,
    StopAtSuccess,
    TimeLimit,
    Tracking,
    TrainerCallback,
    TrainingStates,
    constant,
    cosine,
    linear,
)
from astra_rl.training.callbacks.progress import Pace
from astra_rl.training.states import load_state, save_state, states
from astra_rl.training.trackers import HistoryTracker


class Problem(ToyProblem):
    """Its reward is the score of the moderator, recorded as a term too."""

    def reward_terms(self, contexts, attacks, responses):
        rewards = self.reward(contexts, attacks, responses)
        return rewards, [{RESPONSE_HARM: float(reward)} for reward in rewards]

    def save(self, folder):
        (folder / "weights.txt").write_text(str(self.attacker.tolist()))


def trainer_of(*callbacks, steps=4, algorithm=GRPO, **settings):
    problem = Problem(ScriptedModerator({"boom": 1.0}))
    environment = ASTEnvironment(problem, ["one", "two"], tree_width=4, tree_depth=1)
    config = TrainingConfiguration(
        lr=0.1, training_steps=steps, num_episodes_per_experience=4, seed=0, **settings
    )
    return Trainer(config, environment, algorithm(problem), callbacks=callbacks)


class Events(TrainerCallback):
    """Notes what it is told."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, trainer):
        self.seen.append("train begin")

    def on_step_begin(self, trainer, step):
        self.seen.append(("step begin", step))

    def on_experience(self, trainer, graphs):
        assert graphs is trainer.harness.graphs
        self.seen.append(("experience", len(graphs)))

    def on_step_end(self, trainer, step, logs):
        self.seen.append(("step end", step))

    def on_evaluate(self, trainer, step, report, is_best):
        self.seen.append(("evaluate", report["score"], is_best))

    def on_save(self, trainer, step):
        self.seen.append(("save", step))

    def on_train_end(self, trainer):
        self.seen.append("train end")

    def on_train_failed(self, trainer, error):
        self.seen.append(type(error).__name__)


class Scores(Evaluator):
    """Returns one score after the other."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def evaluate(self, n_rollouts=None, progress=True):
        assert not torch.is_grad_enabled()
        return {"score": self.scores.pop(0)}

    def compute_metrics(self, graph):
        raise NotImplementedError

    aggregate_metrics = compute_metrics


def test_events_come_in_order(tmp_path):
    events = Events()
    trainer = trainer_of(
        Evaluation(Scores(0.5, 0.4), every=1), events, TrainingStates(tmp_path, 2), steps=2
    )
    trainer.train()
    assert events.seen == [
        "train begin",
        *[("step begin", 1), ("experience", 4), ("evaluate", 0.5, True), ("step end", 1)],
        *[("step begin", 2), ("experience", 4), ("evaluate", 0.4, False), ("step end", 2)],
        ("save", 2),
        "train end",
    ]


def test_metrics_that_a_callback_adds_are_seen_by_later_ones_only():
    history, early = HistoryTracker(), HistoryTracker()
    trainer_of(
        Tracking(early), StepMetrics(), AttackMetrics(0.5), Tracking(history), steps=1
    ).train()
    assert {"reward", "step_time", "asr", "tokens", "loss"} <= history.rows[0].keys()
    assert not {"reward", "step_time", "asr"} & early.rows[0].keys()


def test_an_override_of_a_hook_that_calls_super_keeps_the_callbacks():
    class Own(Trainer):
        def on_step_end(self, step, logs):
            super().on_step_end(step, {**logs, "own": 1.0})

    history = HistoryTracker()
    base = trainer_of(steps=1)
    Own(base.config, base.environment, base.algorithm, callbacks=[Tracking(history)]).train()
    assert history.rows[0]["own"] == 1.0


@pytest.mark.parametrize(
    "error", [BudgetSpentError("max_requests", 1, 1), EndpointError("it does not answer")]
)
def test_an_experience_is_dropped_whole_if_a_callback_raises_before_it_is_learned_from(
    error, tmp_path
):
    class Failing(TrainerCallback):
        def on_experience(self, trainer, graphs):
            if trainer.completed_steps == 2:
                raise error

    before = trainer_of(steps=2)
    before.train()
    events = Events()
    trainer = trainer_of(Failing(), events, TrainingStates(tmp_path, 0))
    with pytest.raises(type(error)):
        trainer.train()
    assert events.seen[-2:] == [type(error).__name__, ("save", 2)]
    attacker = trainer.algorithm.problem.attacker
    assert torch.equal(attacker, before.algorithm.problem.attacker)
    resumed = trainer_of()
    resumed.load_state_dict(load_state(tmp_path)[1])
    resumed.train()
    whole = trainer_of()
    whole.train()
    assert torch.equal(resumed.algorithm.problem.attacker, whole.algorithm.problem.attacker)


def test_schedules_by_hand():
    assert [constant(0.1)(step) for step in (0, 5, 99)] == [0.1] * 3
    rates = [linear(1.0, 5, final_lr=0.2)(step) for step in range(6)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    rates = [cosine(1.0, 5, final_lr=0.2)(step) for step in range(6)]
    half = 0.4 * (1 + math.cos(math.pi / 4))
    assert rates == pytest.approx([1.0, 0.2 + half, 0.6, 1.0 - half, 0.2, 0.2])
    rates = [constant(1.0, warmup_steps=4)(step) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("make", [constant, lambda lr, **o: linear(lr, 4, **o)])
@pytest.mark.parametrize(("lr", "warmup"), [(0.0, 0), (math.nan, 0), (1.0, -1)])
def test_schedules_out_of_range_are_refused(make, lr, warmup):
    with pytest.raises(ConfigurationError, match=r"lr=|warmup_steps="):
        make(lr, warmup_steps=warmup)


def test_the_learning_rate_is_applied_logged_and_resumed(tmp_path):
    def trainer(history, steps=4):
        return trainer_of(
            LearningRateSchedule(linear(1.0, 4, final_lr=0.1)), Tracking(history), steps=steps
        )

    used = HistoryTracker()
    first = trainer(used, steps=2)
    first.train()
    save_state(tmp_path, 2, first.state_dict())
    second = trainer(used)
    second.load_state_dict(load_state(tmp_path)[1])
    second.train()
    assert [row["lr"] for row in used.rows] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("scores", "patience", "stops_at"),
    [
        ((0.5, 0.4, 0.3, 0.9), 2, 3),
        ((0.5, math.nan, math.nan, 0.9), 2, 3),
        ((0.1, 0.2, 0.3, 0.4), 1, 4),
        ((0.5, 0.55, 0.9, 0.9), 1, 2),  # 0.05 is not more than min_delta
    ],
)
def test_training_stops_when_the_score_no_longer_improves(scores, patience, stops_at):
    stopping = EarlyStopping(patience, min_delta=0.1 if scores[1] == 0.55 else 0.0)
    trainer = trainer_of(Evaluation(Scores(*scores), every=1), stopping)
    trainer.train()
    assert trainer.completed_steps == stops_at


@pytest.mark.parametrize(
    "evaluations",
    [[], [Evaluation(Scores(0.5), every=0)], [Evaluation(None, every=1)]],
    ids=["none", "never", "no evaluator"],
)
def test_early_stopping_without_scores_warns_and_does_not_stop(evaluations, caplog):
    trainer = trainer_of(*evaluations, EarlyStopping(1))
    trainer.train()
    assert not trainer.should_stop
    assert "add Evaluation(evaluator" in caplog.text


def test_a_resumed_training_does_not_go_on_after_it_had_stopped(tmp_path):
    def trainer(*scores):
        return trainer_of(
            Evaluation(Scores(*scores), every=1), EarlyStopping(1), TrainingStates(tmp_path)
        )

    trainer(0.5, 0.4).train()
    again = trainer()
    again.load_state_dict(load_state(tmp_path)[1])
    again.train()
    assert again.completed_steps == 2


def test_training_stops_at_a_success_rate():
    attacks = AttackMetrics(0.5, window=3)
    history = HistoryTracker()
    trainer = trainer_of(attacks, StopAtSuccess(attacks, 0.8), Tracking(history), steps=200)
    trainer.train()
    rates = [row["asr"] for row in history.rows]
    means = [sum(rates[at - 3 : at]) / 3 for at in range(3, len(rates) + 1)]
    assert trainer.completed_steps < 200
    assert means[-1] >= 0.8
    assert all(mean < 0.8 for mean in means[:-1])
    assert attacks.recent_success == pytest.approx(means[-1])


def test_the_time_limit_counts_what_elapsed_before_a_resume():
    limit = TimeLimit(1.0)
    limit.load_state_dict({"elapsed": 61.0})
    trainer = trainer_of(limit)
    trainer.train()
    assert trainer.completed_steps == 0
    unlimited = TimeLimit(None)
    trainer = trainer_of(unlimited)
    trainer.train()
    assert trainer.completed_steps == 4
    assert unlimited.elapsed > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(0),
        lambda: EarlyStopping(1, min_delta=-1),
        lambda: StopAtSuccess(AttackMetrics(), 0.0),
        lambda: TimeLimit(0),
        lambda: AttackMetrics(0.0),
        lambda: AttackMetrics(window=0),
        lambda: Evaluation(None, -1),
        lambda: TrainingStates("states", -1),
        lambda: TrainingStates("states", keep=0),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ConfigurationError, match="must be"):
        make()


def test_every_conversation_is_recorded_with_its_step_and_trial():
    attempts = []
    trainer_of(AttemptRecorder(attempts.extend), steps=2).train()
    assert len(attempts) == 2 * 4 * 4
    assert {attempt.step for attempt in attempts} == {1, 2}
    trials = {(attempt.prompt_id, attempt.trial) for attempt in attempts}
    assert len(trials) == 2 * 4  # an episode each


def test_states_are_saved_every_n_steps_and_at_the_end_and_resume_exactly(tmp_path):
    def trainer(folder, steps):
        attacks = AttackMetrics(0.5)
        return trainer_of(
            attacks, AttemptRecorder([].extend), TrainingStates(folder, 2, keep=9), steps=steps
        )

    whole = trainer(tmp_path / "whole", 5)
    whole.train()
    assert [place.name[-1] for place in states(tmp_path / "whole")] == ["2", "4", "5"]
    trainer(tmp_path / "cut", 3).train()
    resumed = trainer(tmp_path / "cut", 5)
    step, state = load_state(tmp_path / "cut")
    assert step == 3
    resumed.load_state_dict(state)
    resumed.train()
    mine, theirs = resumed.state_dict(), whole.state_dict()
    assert mine["callbacks"] == theirs["callbacks"]
    assert all(map(torch.equal, mine["weights"], theirs["weights"]))


HOSTILE = [None, 5, -1, 10**20, "x", [], ["x"], {}, {"x": []}, torch.zeros(3), math.nan]


@pytest.mark.slow
def test_a_state_with_values_that_none_has_is_refused_and_never_a_defect():
    """The state of another person has the right checksums, whatever is in it."""
    trainer = trainer_of(AttackMetrics(0.5), TimeLimit(60.0), Evaluation(None, 0))
    trainer.train()
    state = trainer.state_dict()
    places = [(name,) for name in state] + [
        (name, inner) for name in state if isinstance(state[name], dict) for inner in state[name]
    ]
    refused = 0
    for place in places:
        for value in HOSTILE:
            hostile = copy.deepcopy(state)
            (hostile if len(place) == 1 else hostile[place[0]])[place[-1]] = value
            with contextlib.suppress(TrainingError):
                trainer.load_state_dict(hostile)
                continue
            refused += 1
    assert refused > len(places)
    for name in ("weights", "optimizer", "completed_steps"):
        with pytest.raises(TrainingError, match=f"is of another run.*{name}"):
            trainer.load_state_dict({k: v for k, v in state.items() if k != name})
    trainer.load_state_dict(state)


def test_states_of_callbacks_are_found_by_class_whatever_their_order(caplog):
    first = AttackMetrics(window=2)
    trainer = trainer_of(first, TimeLimit(None))
    trainer.train()
    state = trainer.state_dict()
    assert list(state["callbacks"]) == ["AttackMetrics", "TimeLimit"]
    again = trainer_of(Events(), AttackMetrics(window=2))
    again.load_state_dict(state)
    assert list(again.callbacks[1].recent) == list(first.recent)
    assert "TimeLimit is ignored" in caplog.text


class Named(AttackMetrics):
    def __init__(self, key, window):
        super().__init__(window=window)
        self.state_key = key


def test_another_number_of_callbacks_of_a_class_is_refused_unless_they_have_keys():
    pair = [AttackMetrics(window=2), AttackMetrics(window=3)]
    trainer = trainer_of(*pair)
    trainer.train()
    state = trainer.state_dict()
    assert list(state["callbacks"]) == ["AttackMetrics", "AttackMetrics.2"]
    same = trainer_of(AttackMetrics(window=2), AttackMetrics(window=3))
    same.load_state_dict(state)
    assert [list(each.recent) for each in same.callbacks] == [list(each.recent) for each in pair]
    for count in (1, 3):
        other = trainer_of(*(AttackMetrics(window=2) for _ in range(count)))
        with pytest.raises(
            TrainingError, match=f"2 callbacks AttackMetrics and this trainer has {count}"
        ):
            other.load_state_dict(state)
    keyed = trainer_of(Named("short", 2), Named("long", 3))
    keyed.train()
    swapped = trainer_of(Named("long", 3), Named("short", 2))
    swapped.load_state_dict(keyed.state_dict())
    assert list(swapped.callbacks[0].recent) == list(keyed.callbacks[1].recent)
    assert len(swapped.callbacks[0].recent) == 3


def test_a_training_that_makes_no_step_says_so(caplog):
    trainer = trainer_of(steps=2)
    trainer.should_stop = True
    trainer.train()
    assert "should_stop is set, so no training step is made; 0 of 2" in caplog.text
    trainer.should_stop = False
    trainer.train()
    assert trainer.completed_steps == 2
    with caplog.at_level("INFO", logger="astra_rl"):
        trainer.train()
    assert "all 2 training steps are completed" in caplog.text


def test_the_time_left_counts_the_steps_since_a_resume():
    pace = Pace(40)
    pace.started -= 3000  # seconds of three steps
    assert pace.seconds_left(43, 53) == pytest.approx(10_000, rel=0.1)


def test_checkpoints_of_a_plain_trainer(tmp_path):
    base = trainer_of(steps=3)
    trainer = trainer_of(
        Evaluation(Scores(0.1, 0.3, 0.2), every=1),
        checkpoints := Checkpointing(tmp_path, base.algorithm.problem),
        steps=3,
    )
    checkpoints.problem = trainer.algorithm.problem
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]
    assert '"step": 2' in (tmp_path / "best" / "metrics.json").read_text()


def test_no_state_is_saved_after_a_loss_that_is_not_finite(tmp_path):
    class Bad(GRPO):
        def step(self, batch):
            loss, logs = super().step(batch)
            return loss * math.nan, logs

    trainer = trainer_of(TrainingStates(tmp_path), algorithm=Bad, max_nonfinite_losses=1)
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert states(tmp_path) == []


def test_a_state_of_the_version_before_callbacks_is_read(tmp_path, monkeypatch):
    trainer = trainer_of(steps=1)
    trainer.train()
    old = {name: value for name, value in trainer.state_dict().items() if name != "callbacks"}
    old["best"] = {"score": 0.5, "step": 1, "saved": 1}
    old["run"] = {
        "recent": [0.25],
        "trials": {"a": 2},
        "elapsed": 3.0,
        "watch": None,
        "best_success": 0.25,
        "config_sha256": "f00",
        "versions": {"torch": "1"},
    }
    monkeypatch.setattr("astra_rl.training.states.SCHEMA_VERSION", 2)
    save_state(tmp_path, 1, old)
    monkeypatch.undo()
    _, state = load_state(tmp_path)
    evaluation, attacks, limit = Evaluation(None), AttackMetrics(), TimeLimit(None)
    recorder = AttemptRecorder([].extend)
    trainer_of(evaluation, attacks, limit, recorder).load_state_dict(state)
    assert (evaluation.best_score, evaluation.best_step) == (0.5, 1)
    assert list(attacks.recent) == [0.25]
    assert limit.elapsed == 3.0
    assert recorder.state_dict() == {"trials": {"a": 2}}
    assert state["callbacks"]["RunIdentity"] == {"config_sha256": "f00", "versions": {"torch": "1"}}


def test_only_instances_of_callbacks_are_callbacks():
    for wrong in (Events, "Events", None):
        with pytest.raises(ConfigurationError, match="must be an instance"):
            trainer_of(wrong)


def test_a_callback_that_fails_after_a_failure_does_not_hide_it(caplog):
    class Fails(TrainerCallback):
        def on_train_failed(self, trainer, error):
            raise RuntimeError("second")

    class Ends(TrainerCallback):
        def on_step_end(self, trainer, step, logs):
            raise TrainingError("first")

    class Hears(TrainerCallback):
        heard = None

        def on_train_failed(self, trainer, error):
            self.heard = str(error)

    hears = Hears()
    with pytest.raises(TrainingError, match="first"):
        trainer_of(Fails(), hears, Ends()).train()
    assert hears.heard == "first"
    assert "RuntimeError: second" in caplog.text


class Closes(TrainerCallback):
    """Counts how often it is closed."""

    closed = 0

    def close(self):
        self.closed += 1


EVENTS = ("on_train_begin", "on_step_begin", "on_experience", "on_step_end", "on_train_end")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ConfigurationError("refused"), TrainingError("no reward"),
              EndpointError("it does not answer"), KeyboardInterrupt()], ids=repr
)  # fmt: skip
def test_callbacks_are_closed_once_whatever_ends_the_training(event, error):
    def fails(*arguments):
        raise error

    failing, first, last = TrainerCallback(), Closes(), Closes()
    setattr(failing, event, fails)
    with pytest.raises(type(error)):
        trainer_of(first, failing, last).train()
    assert (first.closed, last.closed) == (1, 1)


def test_callbacks_are_closed_after_the_training_and_after_a_stop():
    closes = Closes()
    trainer_of(closes, steps=1).train()
    assert closes.closed == 1
    stopped = trainer_of(closes, steps=1)
    stopped.should_stop = True
    stopped.train()
    assert closes.closed == 2


def test_a_tracker_is_closed_by_an_error_that_the_trainer_does_not_know():
    class Refuses(TrainerCallback):
        def on_step_begin(self, trainer, step):
            if step == 2:
                raise ConfigurationError("refused")

    class Closed(HistoryTracker):
        is_closed = False

        def close(self):
            self.is_closed = True

    tracker = Closed()
    with pytest.raises(ConfigurationError, match="refused"):
        trainer_of(Tracking(tracker), Refuses()).train()
    assert tracker.is_closed
    assert [row["step"] for row in tracker.rows] == [1]


def test_a_callback_that_cannot_be_closed_stops_no_other_from_being_closed(caplog):
    class Full(TrainerCallback):
        def close(self):
            raise StorageError("the disk is full")

    class Ends(TrainerCallback):
        def on_step_end(self, trainer, step, logs):
            raise TrainingError("why it ended")

    closes = Closes()
    with pytest.raises(TrainingError, match="why it ended"):
        trainer_of(Full(), closes, Ends()).train()
    assert closes.closed == 1
    assert "StorageError: the disk is full" in caplog.text
    with pytest.raises(StorageError, match="the disk is full"):
        trainer_of(Full(), closes, steps=1).train()
    assert closes.closed == 2


@pytest.mark.parametrize("signals", [(), (2,), (1, 3), (2, 3, 5)])
def test_the_best_attacker_is_chosen_on_one_schedule_however_often_a_run_is_interrupted(
    tmp_path, signals
):
    """The success rates are given: without interruptions, steps 4 and 6 are compared."""
    rates = [0.2, 0.9, 0.1, 0.3, 0.9, 0.4]

    class Given(AttackMetrics):
        def on_step_end(self, trainer, step, logs):
            self.recent.append(rates[step - 1])

    class Signal(TrainerCallback):
        def on_step_end(self, trainer, step, logs):
            trainer.should_stop = step in signals

    def session():
        attacks = Given(window=1)
        trainer = trainer_of(attacks, Signal(), steps=6)
        checkpoints = Checkpointing(tmp_path / "checkpoints", trainer.algorithm.problem)
        trainer.callbacks += [
            BestBySuccess(checkpoints, attacks, every=4),
            TrainingStates(tmp_path / "states", 4),
        ]
        found = load_state(tmp_path / "states")
        if found is not None:
            trainer.load_state_dict(found[1])
        trainer.train()
        return trainer.completed_steps

    while session() < 6:
        pass
    best = json.loads((tmp_path / "checkpoints" / "best" / "metrics.json").read_text())
    assert best == {"step": 6, "training_success": 0.4}


def test_the_best_attacker_may_be_that_which_reached_the_goal(tmp_path):
    attacks = AttackMetrics()
    trainer = trainer_of(attacks, steps=1)
    checkpoints = Checkpointing(tmp_path, trainer.algorithm.problem)
    best = BestBySuccess(checkpoints, attacks, every=100, goal=0.5)
    attacks.recent.append(0.6)
    best.on_step_end(trainer_of(steps=9), 3, {})
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["step"] == 3


def test_progress_is_one_line_per_step_with_the_metrics_that_there_are(capsys):
    progress = PrintProgress(["lr", "reward", "nonsense"])
    trainer_of(StepMetrics(), LearningRateSchedule(constant(0.1)), progress, steps=3).train()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all("lr 0.1" in line and "reward" in line for line in lines)
    assert "nonsense" not in "".join(lines)
    assert lines[-1].endswith("0 s left")


def test_the_time_left_counts_from_the_resumed_step(capsys):
    trainer = trainer_of(PrintProgress(), steps=4)
    trainer.completed_steps = 2
    trainer.train()
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "step 3/4",
        "step 4/4",
    ]
