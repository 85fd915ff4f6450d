"""Raters label conversations in the browser."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.evaluation.show.report.making import attempt, turn
from tests.hostile import HOSTILE

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.human_labels import HumanLabels, text_key
from astra_rl.runs.label_page import LONGEST_NAME, LabelDesk
from astra_rl.runs.report import render_run_page
from astra_rl.runs.view import MOST_BYTES, LivePage, PageServer

ANNA = {"rater": "anna", "phase": "after"}
COUNT = 8


def conversation(number: int) -> Attempt:
    return attempt(
        turn(f"attack {number}", f"reply {number}", 0.9 if number < 3 else 0.1),
        opening=f"opening {number}",
        attacker="secret attacker",
        target="secret target",
    )


@pytest.fixture
def folder(tmp_path: Any) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    config = {
        "attacker": {"model": "a"},
        "target": {"model": "b"},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets"},
    }
    folder.config.write_text(json.dumps(config))
    with AttemptLog(folder.attempts, write=True) as log:
        for number in range(COUNT):
            log.append(conversation(number))
    return folder


@pytest.fixture
def server(folder: RunFolder) -> Iterator[PageServer]:
    with PageServer(LivePage(folder, render_run_page)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def truth(found: dict[str, Any]) -> bool:
    """The target fails at openings 0 and 1; the judge is wrong about 2."""
    return int(found["opening"][0].rpartition(" ")[2]) < 2


def label_all(desk: LabelDesk, rater: str, judge: Any = truth) -> list[str]:
    found = desk.answer({"rater": rater, "phase": "after"})
    while "result" not in found:
        label = {"key": found["key"], "failed": judge(found)}
        found = desk.answer({"rater": rater, "phase": "after", **label})
    return found["result"]


def test_a_rater_reads_every_conversation_and_sees_no_score_outcome_or_name(
    folder: RunFolder,
) -> None:
    desk, seen = LabelDesk(folder), []

    def read(found: dict[str, Any]) -> bool:
        assert set(found) == {"number", "count", "key", "opening", "facts", "turns"}
        text = json.dumps(found)
        assert "secret" not in text
        assert "0.9" not in text
        seen.append((found["number"], found["opening"][0]))
        return truth(found)

    lines = label_all(desk, "anna", read)
    assert [number for number, _ in seen] == list(range(1, COUNT + 1))
    assert len({opening for _, opening in seen}) == COUNT
    assert lines[0] == f"labels added: {COUNT}"
    assert "by human labels of 8 of 8 conversations" in lines[2]
    assert "25%" in lines[2]
    stored = HumanLabels(folder, "after").by_rater["anna"]
    assert stored == {text_key(conversation(at)): at < 2 for at in range(COUNT)}
    assert label_all(desk, "anna")[0] == "labels added: 0"


def test_two_raters_label_at_the_same_time_and_are_compared(folder: RunFolder) -> None:
    desk = LabelDesk(folder)
    desk.answer({"rater": "bo", "phase": "after"})  # the session of the second one is open
    label_all(desk, "anna")
    lines = label_all(desk, "bo", lambda found: True)
    assert any(line.startswith("anna and bo agree on 2 of 8 conversations") for line in lines)


def test_a_second_click_is_no_label_of_the_next_conversation(folder: RunFolder) -> None:
    desk = LabelDesk(folder)
    first = desk.answer(ANNA)
    label = {**ANNA, "key": first["key"], "failed": True}
    second = desk.answer(label)
    assert desk.answer(label) == second
    assert len(HumanLabels(folder, "after").by_rater["anna"]) == 1
    # Each label is stored at once: another server continues.
    again = LabelDesk(folder).answer(ANNA)
    assert again["count"] == COUNT - 1


@pytest.mark.parametrize(
    "request_",
    [{}, {"rater": " ", "phase": "after"}, {"rater": "x" * (LONGEST_NAME + 1), "phase": "after"},
     {"rater": 3, "phase": "after"}, {"rater": "anna"}, {"rater": "anna", "phase": "../after"},
     {"rater": "anna", "phase": ["after"]}, {"rater": "anna", "phase": "before"},
     {**ANNA, "key": "k"}, {**ANNA, "key": "k", "failed": "yes"}],
)  # fmt: skip
def test_what_is_no_label_is_refused(folder: RunFolder, request_: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        LabelDesk(folder).answer(request_)
    assert not list(folder.path.glob("labels_*"))


def test_a_name_of_a_rater_cannot_leave_the_folder(folder: RunFolder) -> None:
    desk = LabelDesk(folder)
    name = "../../x/\N{BEL}"
    found = desk.answer({"rater": name, "phase": "after"})
    desk.answer({"rater": name, "phase": "after", "key": found["key"], "failed": True})
    (path,) = folder.path.glob("labels_*")
    assert path.parent == folder.path
    assert not [each for each in folder.path.parent.rglob("labels_*") if each != path]


def post(
    server: PageServer, body: bytes, path: str | None = None, **changes: str | None
) -> tuple[int, str]:
    host, port = server.server_address[:2]
    headers: dict[str, str | None] = {
        "Origin": f"http://{host}:{port}",
        "Content-Type": "application/json",
        "Sec-Fetch-Site": "same-origin",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    connection = http.client.HTTPConnection(str(host), int(port), timeout=60)
    try:
        connection.request(
            "POST",
            f"/{server.token}/label" if path is None else path,
            body,
            {name: value for name, value in headers.items() if value is not None},
        )
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_labels_come_from_the_page_of_the_server_and_from_nowhere_else(
    server: PageServer, folder: RunFolder
) -> None:
    good = json.dumps({**ANNA}).encode()
    status, text = post(server, good)
    assert status == 200
    label = json.dumps({**ANNA, "key": json.loads(text)["key"], "failed": True}).encode()
    evil = f"http://evil.example:{server.server_address[1]}"
    for changes in (
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": evil},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": f"http://localhost:{server.server_address[1]}"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        # What a form can send without asking the server first.
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": None},
    ):
        assert post(server, label, **changes)[0] == 403, changes
    assert post(server, label, f"/{'x' * len(server.token)}/label")[0] == 405
    assert post(server, label, "/label")[0] == 405
    assert post(server, label, Content_Length=str(MOST_BYTES + 1))[0] == 413
    assert post(server, label, Content_Length="-1")[0] in (400, 413)
    for broken in (b"", b"{", b"[]", b"\xff", b"[" * 9_000, b"null"):
        status, text = post(server, broken)
        assert status == 400
        assert "error" in json.loads(text)
    assert not list(folder.path.glob("labels_*"))
    assert post(server, label)[0] == 200
    assert len(HumanLabels(folder, "after").by_rater["anna"]) == 1


@pytest.mark.slow
def test_a_rater_labels_with_the_keyboard_and_hostile_text_stays_text(
    browser: Any, server: PageServer, folder: RunFolder
) -> None:
    with AttemptLog(folder.attempts, write=True) as log:
        for at, text in enumerate(HOSTILE[:12]):
            log.append(attempt(turn(text, text, 0.9), opening=text, prompt_id=f"h{at}"))
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(300_000)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append("dialog") or dialog.dismiss())
    page.goto(server.address)
    with context.expect_page() as opened:
        page.click("text=Label")
    page = opened.value
    page.on("console", lambda message: faults.append(message.text))
    page.on("dialog", lambda dialog: faults.append("dialog") or dialog.dismiss())
    page.fill("#rater", "anna")
    page.click("text=Begin")
    page.wait_for_selector("#progress:focus")
    total = COUNT + 12
    shown = []
    for number in range(1, total + 1):
        page.wait_for_selector(f"text=Conversation {number} of {total}")
        shown += page.eval_on_selector_all(
            ".speech.target .shown", "all => all.map(each => each.textContent)"
        )
        assert page.locator(".shown *").count() == 0
        page.keyboard.press("y" if number % 2 else "n")
    page.wait_for_selector("#done:focus")
    assert f"labels added: {total}" in page.inner_text("#result")
    assert len(HumanLabels(folder, "after").by_rater["anna"]) == total
    wanted = {visible_text(text) or "(empty)" for text in HOSTILE[:12]}
    assert {text.replace("\r", "") for text in wanted} <= {text.replace("\r", "") for text in shown}
    assert faults == []
    context.close()
