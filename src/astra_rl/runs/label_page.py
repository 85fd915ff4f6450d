"""The page on which raters label the conversations of a run, served by ``astra-rl view``.

It shows one conversation at a time, without scores, outcomes and the labels of others. Every answer
is stored at once, in the same files as those of ``astra-rl label``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import resources
from typing import Any

from markupsafe import Markup

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.show.report.payload import visible
from astra_rl.evaluation.show.report.render import render_page, source_hash
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.human_labels import text_key
from astra_rl.runs.labelling import LabelSession

LONGEST_NAME = 64
"""Characters of the name of a rater."""
MOST_LABELS = 50
"""Conversations of a session; a rater who has labelled them can begin another one."""
MOST_SESSIONS = 100
"""Sessions that are kept; each has the conversations of a phase in memory."""
PHASES = ("after", "before")


class LabelDesk:
    """Sessions of all raters of a run.

    Args:
        folder: Folder of the run; labels are added to it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._sessions: dict[tuple[str, str], LabelSession] = {}
        self._lock = threading.Lock()

    def page(self) -> str:
        """Return the page as HTML."""
        script = (resources.files("astra_rl.runs") / "label.js").read_text(encoding="utf-8")
        return render_page(
            "label.html.j2",
            script=Markup(script),
            script_hash=source_hash(script),
            phases=self._phases(),
            longest=LONGEST_NAME,
        )

    def _phases(self) -> list[str]:
        if not self.folder.attempts.is_file():
            return []
        with AttemptLog(self.folder.attempts) as log:
            return [phase for phase in PHASES if log.count(phase=phase)]

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Store a label, if the request has one, and return the next conversation.

        Args:
            request: ``rater`` and ``phase``; with ``key`` and ``failed``, the label of the
                conversation with this key. A label of another than the current conversation, as of
                a second click, is not stored.

        Returns:
            ``number``, ``count``, ``key`` and the texts of the conversation; or ``result``, the
            result of the session in words, if all conversations of it are labelled.

        Raises:
            ConfigurationError: The request is none of these, or the run has no such phase.
        """
        rater, phase = request.get("rater"), request.get("phase")
        if not isinstance(rater, str) or not rater.strip() or len(rater) > LONGEST_NAME:
            raise ConfigurationError(
                f"the name of the rater must have 1 to {LONGEST_NAME} characters."
            )
        if phase not in PHASES:
            raise ConfigurationError(f"phase={phase!r:.40}; it must be one of {', '.join(PHASES)}.")
        key, failed = request.get("key"), request.get("failed")
        if key is not None and not isinstance(failed, bool):
            raise ConfigurationError("a label needs 'failed', which must be true or false.")
        with self._lock:  # two tabs of one rater share a session
            session = self._session(phase, rater.strip())
            if failed is not None and session.current and key == text_key(session.current):
                session.answer(failed)
            if session.current is None:
                del self._sessions[phase, rater.strip()]
                return {"result": [visible(line) for line in session.result().lines]}
            return {
                "number": session.added + 1,
                "count": session.count,
                "key": text_key(session.current),
                **_texts(session.current),
            }

    def _session(self, phase: str, rater: str) -> LabelSession:
        found = self._sessions.get((phase, rater))
        if found is None:
            found = LabelSession(self.folder, phase, rater, MOST_LABELS)
            while len(self._sessions) >= MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[phase, rater] = found
        return found


def _texts(attempt: Attempt) -> dict[str, Any]:
    """Return what a rater reads of an attempt: no score, no outcome, no name of a model."""
    opening = attempt.opening
    return {
        "opening": [visible(each) for each in (opening.prompt, *opening.turns) if each],
        "facts": [[visible(name), visible(fact)] for name, fact in opening.facts.items()],
        "turns": [[visible(turn.attack), visible(turn.response)] for turn in attempt.turns],
    }
