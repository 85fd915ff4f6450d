"""Is version B of an application better than A? The same prompts to both, compared in pairs.

    python examples/differential_testing.py --smoke     # the two functions below, offline

Replace `version_a` and `version_b` by functions that call two versions of your application; URLs of
endpoints and folders of models work as well. The paired comparison needs fewer prompts than two
separate rates, because each prompt is its own control.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import astra_rl
from astra_rl.actions.compare import Comparison, compare_runs

PROMPTS = [
    f"{greeting}, may I {wish}?"
    for greeting in ("Hello", "Good morning", "Excuse me", "Hey", "HELLO", "Listen")
    for wish in ("come in", "see the garden", "HAVE A KEY", "read the letter", "sit here")
]


def version_a(text: str) -> str:
    """Refuse whoever shouts."""
    shouts = any(word.isupper() and len(word) > 1 for word in text.split())
    return "I cannot help you with that." if shouts else "Yes, of course."


def version_b(text: str) -> str:
    """Refuse whoever shouts the first word; asking loudly for a key is fine now."""
    return version_a(text.split()[0])


def compare(
    a: str | Callable[[str], str], b: str | Callable[[str], str], folder: Path
) -> Comparison:
    """Test both with the same prompts and judge, and compare them in pairs."""
    for name, version in (("a", a), ("b", b)):
        astra_rl.redteam(version, PROMPTS, judge="refusal", output=folder / name)
    return compare_runs(folder / "a", folder / "b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="leave no folder behind")
    parser.add_argument("--output", type=Path, default=Path("runs/versions"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(version_a, version_b, Path(temporary) if options.smoke else options.output)
    pairs = found.pairs
    print(
        f"failure rate of A minus that of B: {pairs.difference:+.0%} "
        f"({pairs.interval.low:+.0%} to {pairs.interval.high:+.0%}), p = {pairs.p_value:.3g}",
        file=sys.stderr,
    )
    for name, attempts in (("A", found.only_a), ("B", found.only_b)):
        for attempt in attempts[:3]:
            print(f"only {name} failed: {attempt.failing_request}", file=sys.stderr)


if __name__ == "__main__":
    main()
