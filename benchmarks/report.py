"""A report page of ten thousand conversations: time to write it, size, and time to first paint.

The page is opened from disk in the system's Chromium, each time with a fresh profile. First paint
is what the browser reports (Paint Timing), counted from the start of the navigation.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from pathlib import Path

from common import Row, median, save, spread
from playwright.sync_api import Browser, sync_playwright

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Turn
from astra_rl.evaluation.show.report import Evaluation, ReportData, render_report

CONVERSATIONS = 10_000
REPEATS = 5
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
OPENED = "document.documentElement.dataset.opened === 'yes' ? performance.now() : null"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("this benchmark needs chromium: apt-get install chromium")
    data = ReportData(title="Ten thousand", evaluations=[evaluation()])
    started, used_before = time.perf_counter(), time.process_time()
    text = render_report(data)
    rendering, used = time.perf_counter() - started, time.process_time() - used_before
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        path = Path(folder) / "report.html"
        path.write_text(text, encoding="utf-8")
        browser = play.chromium.launch(executable_path=chromium, args=list(FLAGS))
        times = [opening(browser, path) for _ in range(REPEATS)]
        browser.close()
    paints, opened = zip(*times, strict=True)
    detail = {
        "first paint, seconds": spread(paints),
        "list of conversations usable, seconds": spread(opened),
        "rendering, seconds": round(rendering, 1),
        "conversations": CONVERSATIONS,
    }
    save(
        "report",
        [
            Row("page of 10,000 conversations", len(text) / 1e6, 20, False, " MB"),
            Row("its rendering, processor time", used, 5, False, " s"),
            Row("its first paint", median(paints), 2, False, " s", detail),
        ],
    )


def evaluation() -> Evaluation:
    """Return synthetic conversations of two turns, with a vocabulary of 2000 words."""
    draw = random.Random(0)
    syllables = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(2000)]

    def turn(score: float) -> Turn:
        return Turn(
            attack=" ".join(draw.choices(words, k=20)),
            response=" ".join(draw.choices(words, k=60)),
            scores={"judge": JudgeScore(value=score)},
            logprobs={"baseline": LogProb(total=-draw.uniform(20, 90), tokens=25)},
        )

    attempts = [
        Attempt.make(
            run="benchmark",
            phase="after",
            opening=f"opening {number}",
            attacker="attacker",
            target="target",
            judge="judge",
            turns=[turn(draw.random() ** 8), turn(draw.random() ** 4)],
        )
        for number in range(CONVERSATIONS)
    ]
    return Evaluation(name="after training", attempts=attempts)


def opening(browser: Browser, path: Path) -> tuple[float, float]:
    """Return the seconds until first paint, and until the page is interactive."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri(), wait_until="commit")
    found: dict[str, float] = {}
    while len(found) < 2:
        for name, expression in (("paint", PAINT), ("opened", OPENED)):
            value = page.evaluate(expression)
            if value is not None:
                found.setdefault(name, value / 1000)
        page.wait_for_timeout(20)
    context.close()
    return found["paint"], found["opened"]


if __name__ == "__main__":
    main()
