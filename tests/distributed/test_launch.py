"""What was not made for several processes is refused when several are started together."""

import pytest
from tests.cli.running import astra_rl

from astra_rl import REINFORCE, ConfigurationError, Trainer, TrainingConfiguration
from astra_rl.cli.main import COMMANDS, ON_SEVERAL_PROCESSES
from astra_rl.distributed.launch import world_size
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem

ALL = [command.__name__ for row in COMMANDS.values() for command in row]
ALONE = sorted(set(ALL) - set(ON_SEVERAL_PROCESSES))


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("command", ALONE)
def test_a_command_for_one_process_is_refused_and_writes_nothing(command, tmp_path):
    done = astra_rl(command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: astra-rl {command} runs in one process, and 2 were started (WORLD_SIZE=2 in the "
        "environment). Start it without torchrun or accelerate, or unset WORLD_SIZE."
    ]
    assert list(tmp_path.iterdir()) == []


class Alone:
    """Stands for the processes of a training, of which none is there."""

    size, rank, is_first = 2, 0, True


@pytest.mark.parametrize("method", ["train", "training_step"])
def test_a_trainer_with_a_loop_of_its_own_is_refused(method, monkeypatch):
    monkeypatch.setattr("astra_rl.training.trainer.join", Alone)
    problem = ToyProblem()
    environment = ASTEnvironment(problem, ["say: "])
    kind = type("Mine", (Trainer,), {method: lambda self, *given: None})
    with pytest.raises(ConfigurationError, match=f"Mine overrides {method}, and 2 processes were"):
        kind(TrainingConfiguration(), environment, REINFORCE(problem))


@pytest.mark.usefixtures("two_processes")
def test_processes_that_cannot_find_each_other_are_told_how_to_start(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    problem = ToyProblem()
    environment = ASTEnvironment(problem, ["say: "])
    with pytest.raises(ConfigurationError, match=r"WORLD_SIZE=2, and the processes cannot find"):
        Trainer(TrainingConfiguration(), environment, REINFORCE(problem))


@pytest.mark.parametrize("given", ["two", "0", "-1", "1.5"])
def test_a_damaged_number_of_processes_is_named(given, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", given)
    with pytest.raises(ConfigurationError, match=f"WORLD_SIZE='{given}'"):
        world_size()


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for value in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", value)
        assert world_size() == 1
    monkeypatch.delenv("WORLD_SIZE")
    assert world_size() == 1
