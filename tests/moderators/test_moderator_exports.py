import subprocess
import sys

import pytest

import astra_rl.moderators


def test_all_names_are_sorted_and_can_be_imported():
    names = astra_rl.moderators.__all__
    assert names == ["MODERATORS", *sorted(names[1:])]
    classes = [name for name in names if name != "MODERATORS"]
    assert [getattr(astra_rl.moderators, name).__name__ for name in classes] == classes
    assert set(names) <= set(dir(astra_rl.moderators))


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchModerator"):
        astra_rl.moderators.NoSuchModerator  # noqa: B018 - the access is what is tested


@pytest.mark.slow
def test_importing_the_package_imports_no_model_library():
    program = (
        "import sys, astra_rl.moderators\n"
        "from astra_rl.moderators import FunctionModerator, SecretLeakModerator\n"
        "heavy = {'transformers', 'detoxify', 'profanity_check', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
