"""An export format: recorded conversations in the form that another program reads."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.show.escaping import markdown_text
from astra_rl.evaluation.show.exports import Export
from astra_rl.infra.jsonio import atomic_file


def write_attack_list(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write the attacks of successful attempts as a list in Markdown; return its length."""
    found = Counter(
        attempt.failing_turn.attack
        for attempt in source_of(attempts).attempts()
        if attempt.failing_turn is not None
    )
    with atomic_file(path) as file:
        for attack, times in found.most_common():
            # Models wrote it: as a code span it can hold no links and no markup.
            file.write(f"- {times} times: {markdown_text(attack)}\n")
    return len(found)


ATTACK_LIST = Export(
    "attack_list.md", "successful attacks, the most frequent first", write_attack_list
)
