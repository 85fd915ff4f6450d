"""Scenarios and prompt data sets: bundled ones, loaders for files and hubs, and splits."""

from astra_rl.datasets.benchmarks import BENCHMARKS, load_benchmark
from astra_rl.datasets.files import load_rows
from astra_rl.datasets.rows import Row
from astra_rl.datasets.scenario import Scenario
from astra_rl.datasets.scenario_files import load_scenario, scenario_names

__all__ = [
    "BENCHMARKS",
    "Row",
    "Scenario",
    "load_benchmark",
    "load_rows",
    "load_scenario",
    "scenario_names",
]
