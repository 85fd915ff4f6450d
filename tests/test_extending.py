"""Files of src/ to touch for a new algorithm, reward, moderator, environment or target.

| extension | of the user's own | built in |
| --- | --- | --- |
| algorithm, reward, moderator, environment, target | 0: `package.module:Name` | 1: its module |
"""

import importlib
import pkgutil
import subprocess
import sys
import textwrap

import pytest

from astra_rl.algorithms import ALGORITHMS
from astra_rl.infra.registry import DECLARED, declared_in
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
PACKAGES = {
    "algorithm": "astra_rl.algorithms",
    "environment": "astra_rl.methods",
    "moderator": "astra_rl.moderators",
    "reward": "astra_rl.rewards",
    "target": "astra_rl.targets",
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


@pytest.mark.parametrize("kind", REGISTRIES)
def test_what_is_built_in_declares_its_name_in_its_own_module(kind):
    """The oracle is what the decorators do when the modules are imported."""
    registry = REGISTRIES[kind]
    package = importlib.import_module(PACKAGES[kind])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    of_package = {
        path: name for path, name in DECLARED.items() if path.startswith(f"{package.__name__}.")
    }
    found = declared_in(package.__name__)
    assert {path: name for name, path in found.items()} == of_package
    assert len(found) == len(of_package), "two with the same name"
    assert set(found) <= set(registry)


@pytest.mark.slow
def test_the_names_of_the_registries_are_known_without_importing_what_they_name():
    program = (
        "import sys\n"
        "from astra_rl.moderators.registry import MODERATORS\n"
        "from astra_rl.targets.registry import TARGETS\n"
        "assert 'llama_guard' in MODERATORS and 'openai' in TARGETS\n"
        "heavy = {'transformers', 'astra_rl.moderators.llama_guard'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
