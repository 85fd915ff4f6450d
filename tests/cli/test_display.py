"""The progress display of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.evaluation.show.report.making import attempt, turn

from astra_rl import GRPO, ASTEnvironment, Trainer, TrainingConfiguration
from astra_rl.cli.console import SafeConsole
from astra_rl.cli.display import ConsoleDisplay
from astra_rl.cli.output import Printer
from astra_rl.cli.training_output import MOST_FAILURES, print_different
from astra_rl.evaluation.measures.failure_kinds import NamedFailure
from astra_rl.testing import ToyProblem
from astra_rl.training.callbacks import AttackMetrics, StepMetrics


@pytest.mark.parametrize("is_terminal", [False, True])
def test_each_step_is_shown_and_a_resumed_training_counts_from_where_it_was(is_terminal):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=is_terminal, color_system=None, width=120)
    display = ConsoleDisplay(console, max_minutes=5.0)
    problem = ToyProblem()
    trainer = Trainer(
        TrainingConfiguration(training_steps=4, num_episodes_per_experience=1),
        ASTEnvironment(problem, ["hello"], tree_depth=1),
        GRPO(problem),
        callbacks=[StepMetrics(), AttackMetrics(), display],
    )
    trainer.completed_steps = 2
    display.stage("training")
    trainer.train()
    display.close()
    display.close()  # no second end
    text = shown.getvalue()
    assert "training ..." in text
    assert "min left" in text
    if is_terminal:
        assert "2/4" in text
        assert "4/4" in text
    else:
        assert [line[:8] for line in text.splitlines()[1:]] == ["step 3/4", "step 4/4"]
        assert "0.0 min left" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "said"), [(600.0, "all 9 steps fit"), (1e-6, "about 2 of 9 steps fit")]
)
def test_how_many_steps_fit_into_the_time_limit_is_said_once_it_was_measured(seconds, said):
    shown = io.StringIO()
    display = ConsoleDisplay(Console(file=shown, width=120), max_minutes=seconds / 60)
    problem = ToyProblem()
    Trainer(
        TrainingConfiguration(training_steps=9, num_episodes_per_experience=1),
        ASTEnvironment(problem, ["hello"], tree_depth=1),
        GRPO(problem),
        callbacks=[StepMetrics(), AttackMetrics(), display],
    ).train()
    lines = [line for line in shown.getvalue().splitlines() if "measured speed" in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "s per step" in lines[0]


def test_each_different_failure_is_one_escaped_line():
    def said(attack, response):
        return attempt(turn(attack, response, 1.0))

    shown = io.StringIO()
    owner = [said("Who\nowns [bold]it[/bold]?\x1b[31m", "Clara " * 40)] * 3
    out = Printer()
    out.console = SafeConsole(file=shown, width=80, color_system=None)
    cat = [said("Cat?", "Pickles")]
    print_different([NamedFailure("owner", owner), NamedFailure("cat", cat)], out)
    lines = [line for line in shown.getvalue().splitlines() if "owner" in line or "cat" in line]
    assert len(lines) == 2
    assert "75%" in lines[0]
    assert "Who owns [bold]it[/bold]?" in lines[0]
    assert "25%" in lines[1]
    assert "Pickles" in lines[1]
    assert "\x1b" not in shown.getvalue()
    assert "2 different failures were found (1.8 effective)" in shown.getvalue()


def test_failures_beyond_the_first_are_counted_in_one_line():
    shown = io.StringIO()
    out = Printer()
    out.console = SafeConsole(file=shown, width=80, color_system=None)
    every = [
        NamedFailure("", [attempt(turn(f"question {number}", "12", 1.0))]) for number in range(25)
    ]
    print_different(every, out)
    lines = shown.getvalue().strip().splitlines()
    assert len(lines) == 1 + MOST_FAILURES + 1
    assert lines[0].endswith("(25.0 effective), grouped by the words of the attacks:")
    assert lines[1].split() == ["4%", "hello", "question", "0", "->", "12"]
    assert lines[-1].split() == ["20%", "5", "more,", "in", "the", "report"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["owner", "cat"], "named by SecretLeakModerator:"),
        (["owner", ""], "named by SecretLeakModerator, the others grouped by the words of the"),
        (["", ""], "grouped by the words of the attacks:"),
    ],
)
def test_which_judge_names_the_failures_is_said(names, said):
    shown = io.StringIO()
    out = Printer()
    out.console = SafeConsole(file=shown, width=200, color_system=None)
    failed = attempt(turn("Who?", "Clara", 1.0)).model_copy(update={"judge": "SecretLeakModerator"})
    print_different([NamedFailure(name, [failed]) for name in names], out)
    assert said in shown.getvalue()
