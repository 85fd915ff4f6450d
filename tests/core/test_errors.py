import pickle

import pytest

from astra_rl import errors
from astra_rl.errors import (
    AstraError,
    BudgetSpentError,
    MissingDependencyError,
    did_you_mean,
    require,
)


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.ContractError, ValueError),
        (errors.ModelError, RuntimeError),
        (errors.TrainingError, RuntimeError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_every_error_is_ours_and_the_standard_one_it_refines(kind, standard):
    error = kind("why")
    assert isinstance(error, AstraError)
    assert isinstance(error, standard)
    assert str(pickle.loads(pickle.dumps(error))) == "why"


def test_amounts_of_a_budget_are_written_out() -> None:
    error = BudgetSpentError("max_tokens", 1234567, 1234567.0)
    assert str(error) == "the budget max_tokens=1234567 is spent (1234567)"
    error = BudgetSpentError("max_tokens", 900000, 123456, 987654)
    assert "may take 987654 (123456 is spent)" in str(error)
    error = BudgetSpentError("max_cost", 0.0160279999999999, 0.0160279999999999)
    assert str(error) == "the budget max_cost=0.016028 is spent (0.01603)"


def test_a_missing_package_names_the_extra_that_installs_it():
    assert require("json", extra="x").__name__ == "json"
    with pytest.raises(MissingDependencyError, match=r"extra 'demo'.*pip install '"):
        require("no_such_package_anywhere", extra="demo")


def test_the_nearest_name_is_offered_and_nothing_far():
    assert did_you_mean("adamv", ["adam", "adamw", "sgd"]) in (
        " Did you mean 'adam'?",
        " Did you mean 'adamw'?",
    )
    assert did_you_mean("AdamW", ["adam", "adamw"]) == " Did you mean 'adamw'?"
    assert did_you_mean("zzz", ["adam"]) == ""
