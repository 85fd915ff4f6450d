"""Make model organisms, and write down what was measured on them.

    python benchmarks/organisms.py [--seeds 0 1 2 3 4] [--held-out] [--families 20]
        [--model bundled:smollm2-135m --steps 200 --rows 16 --checked 8]

An organism whose checks pass is kept in the cache folder of the user, where the benchmark of
discovery finds it; one that fails a check is refused. With another base than ``small`` the organism
is a LoRA adapter of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

from common import Row, save

from astra_rl.bench import OrganismTarget
from astra_rl.bench.organism import SMALL
from astra_rl.bench.organism_checks import Checks
from astra_rl.errors import ModelError


def main() -> None:
    """Make the organisms, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--held-out", action="store_true", help="families of held-out organisms")
    parser.add_argument("--families", type=int, default=20)
    parser.add_argument("--model", default=SMALL)
    for name in ("steps", "rows", "checked"):
        parser.add_argument(f"--{name}", type=int, help="other than in the recipe of the base")
    chosen = parser.parse_args()
    other = {
        name: value
        for name in ("steps", "rows", "checked")
        if (value := getattr(chosen, name)) is not None
    }
    made: dict[str, dict[str, object]] = {}
    for seed in chosen.seeds:
        # The benchmark of discovery numbers held-out targets from 1000 on.
        number = seed + 1000 * chosen.held_out
        target = OrganismTarget(
            number, chosen.families, held_out=chosen.held_out, model=chosen.model
        )
        target.recipe = dataclasses.replace(target.recipe, **other)
        before = time.process_time()
        try:
            checks = target.checks
        except ModelError as error:
            made[str(number)] = {"refused": str(error)}
            print(f"seed {number}: {error}", flush=True)
            continue
        seconds = time.process_time() - before
        made[str(number)] = {**dataclasses.asdict(checks), "processor_seconds": round(seconds, 1)}
        print(f"seed {number}: {checks}, {seconds:.0f} s of the processor", flush=True)
    rows = [
        Row(f"organisms that pass their checks, base {chosen.model}",
            sum("refused" not in each for each in made.values()) / len(made), 1.0, unit=""),
    ]  # fmt: skip
    of = "" if chosen.model == SMALL else f"_{chosen.model.split(':')[-1]}"
    bounds = {name: list(each) for name, each in Checks.BOUNDS.items()}
    save(f"organisms{of}{'_held_out' * chosen.held_out}", rows, made=made, bounds=bounds)


if __name__ == "__main__":
    main()
