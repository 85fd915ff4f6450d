"""Files of src/ to touch for a new algorithm, reward, moderator, environment or target.

| extension | of the user's own | built in |
| --- | --- | --- |
| algorithm | 0: `package.module:Name` | 2: its module, the line of `ALGORITHMS` |
| reward term | 0: `package.module:Name` | 2: its module, the line of `REWARDS` |
| moderator | 0: `package.module:Name` | 2: its module, the line of `MODERATORS` |
| environment | 0: `package.module:Name` | 1: `methods/environments.py` has class and registry |
| target | 0: `package.module:Name` | 2: its module, the line of `TARGETS` |
"""

import textwrap

import pytest

from astra_rl.algorithms import ALGORITHMS
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.moderators.registry import MODERATORS
from astra_rl.rewards import REWARDS
from astra_rl.targets.registry import TARGETS

REGISTRIES = {
    "algorithm": ALGORITHMS,
    "environment": ENVIRONMENTS,
    "moderator": MODERATORS,
    "reward": REWARDS,
    "target": TARGETS,
}


@pytest.fixture
def extension(tmp_path, monkeypatch):
    (tmp_path / "my_extension.py").write_text(
        textwrap.dedent(
            """
            from astra_rl.algorithms import GRPO
            from astra_rl.core.moderator import Moderator

            class Shouting(Moderator):
                def moderate(self, x):
                    return [float(str(text).isupper()) for text in x]

            class MyAlgorithm(GRPO):
                pass
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_registry_accepts_an_import_path(extension, kind):
    name = "my_extension:MyAlgorithm" if kind == "algorithm" else "my_extension:Shouting"
    registry = REGISTRIES[kind]
    registry.check(name)
    assert registry.load(name).__module__ == "my_extension"
    assert name not in registry


def test_a_moderator_of_the_user_scores(extension):
    moderator = MODERATORS.load("my_extension:Shouting")()
    assert moderator.moderate(["NO", "no"]) == [1.0, 0.0]
