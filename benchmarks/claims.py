"""The claims of docs/evidence.md, attacked by simulations that share no code with the library.

    python benchmarks/claims.py [NAME...]

Populations are drawn with numpy alone, in the situations in which intervals usually fail: few
prompts, unequal numbers of trials, rare and bunched successes, errors that several turns share,
collapsed seeds, many rare kinds, lost scores, sides that stop when they like what they see. Each
row is the lowest coverage over its situations. With names only these claims are simulated, and
their rows in the results are replaced.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import claims_judges
import claims_rare
import claims_rates
from common import Row, save_parts

PARTS = (
    claims_rates.success_rate,
    claims_rates.success_at_k,
    claims_rates.difference,
    claims_rates.stopped,
    claims_rates.lost_scores,
    claims_rates.lost_scores_bias,
    claims_rates.never_failing,
    claims_rates.seeds,
    claims_rates.sequence,
    claims_judges.corrected,
    claims_judges.labels_of_prompts,
    claims_judges.guessing,
    claims_judges.ends_early,
    claims_judges.human_labels,
    claims_judges.calibration,
    claims_rare.probability,
    claims_rare.ordered,
    claims_rare.checkpoints,
    claims_rare.withheld,
    claims_rare.all_kinds,
    claims_rare.kinds_seen,
    claims_rare.splitting,
    claims_rare.kinds,
    claims_rates.tries,
    claims_rates.few_prompts,
    claims_rates.never_failing_forecast,
)
CLAIMS: dict[str, Callable[[], Row]] = {each.__name__: each for each in PARTS}


def main() -> None:
    chosen = sys.argv[1:] or list(CLAIMS)
    for name in chosen:
        if name not in CLAIMS:
            sys.exit(f"no claim {name!r}; known: {', '.join(CLAIMS)}")
        started = time.process_time()
        row = CLAIMS[name]()
        seconds = round(time.process_time() - started, 1)
        print(name, row.value, seconds, flush=True)
        measured = replace(row, detail={**row.detail, "cpu_seconds": seconds})
        save_parts("claims", {name: [measured]}, list(CLAIMS))


if __name__ == "__main__":
    main()
