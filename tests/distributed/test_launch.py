"""What was not made for several processes is refused when several are started together."""

import pytest
from tests.cli.running import astra_rl

from astra_rl import REINFORCE, ConfigurationError, Trainer, TrainingConfiguration
from astra_rl.cli.main import COMMANDS
from astra_rl.distributed.launch import world_size
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("command", sorted(c.__name__ for row in COMMANDS.values() for c in row))
def test_a_command_for_one_process_is_refused_and_writes_nothing(command, tmp_path):
    done = astra_rl(command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: astra-rl {command} runs in one process, and 2 were started (WORLD_SIZE=2 in the "
        "environment). Start it without torchrun or accelerate, or unset WORLD_SIZE."
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("two_processes")
def test_a_trainer_is_refused():
    problem = ToyProblem()
    environment = ASTEnvironment(problem, ["say: "])
    with pytest.raises(ConfigurationError, match=r"Trainer runs in one process, and 2 were"):
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
