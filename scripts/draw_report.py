"""Take the screenshots of docs/report.md: a run's page in both themes, in the system's Chromium.

    python scripts/draw_report.py runs/demo-... [--chromium /usr/bin/chromium]

The screenshots contain model output, so use a run with harmless content.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.report import write_run_page

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SIZE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
ROLLOUT = "conversations?phase=in+training&outcome=success&sort=reward"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        page = write_run_page(open_run_folder(arguments.run), Path(folder).resolve() / "page.html")
        browser = play.chromium.launch(executable_path=arguments.chromium, args=list(FLAGS))
        for scheme in ("light", "dark"):
            draw_all(browser, page.as_uri(), scheme)
        browser.close()


def draw_all(browser: Browser, address: str, scheme: str) -> None:
    """Take all screenshots in one theme."""
    page = opened(browser, address, scheme, SIZE)
    for view in ("summary", "failures", "judges", "training"):
        show(page, view)
        take(page, f"report_{view}_{scheme}")
    show(page, "failures")
    page.locator(".gallery").evaluate("each => scrollTo(0, each.offsetTop - 210)")
    take(page, f"report_kinds_{scheme}")
    show(page, ROLLOUT)
    page.locator(".row").nth(5).click()
    page.wait_for_selector(".tree")
    take(page, f"report_conversation_{scheme}")
    page = opened(browser, address, scheme, PHONE)
    show(page, "summary")
    take(page, f"report_phone_{scheme}")


def opened(browser: Browser, address: str, scheme: str, size: dict[str, int]) -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-opened]")
    page.keyboard.press("r")  # reveal model output
    return page


def show(page: Page, view: str) -> None:
    page.evaluate("where => { location.hash = where; }", f"#/{view}")
    page.wait_for_timeout(700)


def take(page: Page, name: str) -> None:
    page.screenshot(path=IMAGES / f"{name}.png")
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
