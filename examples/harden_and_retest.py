"""Attack a model, fine-tune it on its failures, and attack it again with a fresh attacker.

    python examples/harden_and_retest.py --attacker PATH --target PATH      # models of yours
    python examples/harden_and_retest.py --smoke                            # two tiny ones, offline

Needs the extra `harden`. The same on the command line: ``astra-rl harden CONFIG.yaml``. With tiny
random models the numbers mean nothing; with yours, look at whether *new* attacks still succeed, and
whether the target still answers benign requests.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from astra_rl.actions.harden import Hardened, harden
from astra_rl.config.loading import parse_config
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.testing import tiny_model

logging.basicConfig(level=logging.INFO, format="%(message)s")


def settings(attacker: str, target: str, *, smoke: bool) -> dict[str, Any]:
    """Return the configuration: which models, what a failure is, how long it takes."""
    few = {"train": 4, "test": 4} if smoke else {}
    return {
        "title": "harden and retest",
        "attacker": {"model": attacker, "max_new_tokens": 6 if smoke else 32},
        "target": {"model": target, "max_new_tokens": 12 if smoke else 64},
        "moderator": {"type": "keyword", "options": {"patterns": ["[xqz]"]}}
        if smoke
        else {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets", **few},
        "environment": {"type": "single_turn", "tree_width": 2 if smoke else 8},
        "training": {"steps": 1 if smoke else 60, "episodes_per_step": 2 if smoke else 8},
        "evaluation": {"before": False},
        "harden": {
            "rounds": 1,
            "benign": "benign_twins",
            **({"failures": 4} if smoke else {}),
        },
        "dtype": "float32" if smoke else "auto",
    }


def show(done: Hardened) -> None:
    """Print the success rate of every attacker against every target, and refusals of each."""
    for (attacker, target), rate in done.result.matrix.rates.items():
        print(f"{attacker} against {target}: {rate.text}", file=sys.stderr)
    for target, refusals in done.result.refusals.items():
        print(f"{target} refuses benign requests: {refusals.asr.text}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacker", default="attacker")
    parser.add_argument("--target", default="target")
    parser.add_argument("--output", type=Path, default=Path("runs/hardened"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        attacker, target, output = options.attacker, options.target, options.output
        if options.smoke:
            attacker, target = (str(Path(temporary) / name) for name in ("attacker", "target"))
            for seed, folder in enumerate((attacker, target)):
                for part in tiny_model("llama", seed=seed, window=256):
                    part.save_pretrained(folder)
            output = Path(temporary) / "run"
        text = dump_yaml(settings(attacker, target, smoke=options.smoke))
        show(harden(parse_config(text, source="this example"), output))


if __name__ == "__main__":
    main()
