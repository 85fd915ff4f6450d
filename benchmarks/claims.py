"""The claims of docs/evidence.md, attacked by simulations that share no code with the library.

    python benchmarks/claims.py [NAME...]

Populations are drawn with numpy alone, in the situations in which intervals usually fail: few
prompts, unequal numbers of trials, rare and bunched successes, errors that several turns share,
collapsed seeds, many rare kinds, lost scores, sides that stop when they like what they see. Each
row is the lowest coverage over its situations. With names only these claims are simulated, and
their rows in the results are replaced.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import claims_judges
import claims_rare
import claims_rates
from common import RESULTS, Row, save

CLAIMS: dict[str, Callable[[], Row]] = {
    **{
        each.__name__: each
        for each in (
            claims_rates.success_rate, claims_rates.success_at_k, claims_rates.difference,
            claims_rates.stopped, claims_rates.lost_scores, claims_rates.lost_scores_bias,
            claims_rates.never_failing, claims_rates.seeds, claims_judges.corrected,
            claims_judges.labels_of_prompts, claims_judges.guessing, claims_judges.ends_early,
            claims_judges.human_labels, claims_rare.probability, claims_rare.ordered,
            claims_rare.checkpoints, claims_rare.withheld,
        )
    },
    "kinds_seen": lambda: claims_rare.kinds_seen(False),
    "all_kinds": lambda: claims_rare.kinds_seen(True),
    **{
        each.__name__: each
        for each in (
            claims_rates.sequence, claims_rare.kinds, claims_judges.calibration,
            claims_rates.tries, claims_rates.few_prompts, claims_rare.splitting,
        )
    },
}  # fmt: skip


def earlier() -> dict[str, Row]:
    """Return the rows of the stored results by claim."""
    path = RESULTS / "claims.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    found = {}
    for row in rows:
        row.pop("reached")
        found[row["detail"].get("claim")] = Row(**row)
    return found


def main() -> None:
    chosen = sys.argv[1:] or list(CLAIMS)
    for name in chosen:
        if name not in CLAIMS:
            sys.exit(f"no claim {name!r}; known: {', '.join(CLAIMS)}")
        started = time.process_time()
        row = CLAIMS[name]()
        seconds = round(time.process_time() - started, 1)
        row = replace(row, detail={**row.detail, "claim": name, "cpu_seconds": seconds})
        print(name, row.value, seconds, flush=True)
        rows = {**earlier(), name: row}
        save("claims", [rows[each] for each in CLAIMS if each in rows])


if __name__ == "__main__":
    main()
