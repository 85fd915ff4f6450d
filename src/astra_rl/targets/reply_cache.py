"""Replies on disk, so that nothing is asked and paid for twice: a SQLite file of JSON.

A run that was killed and goes on asks the same things again, and gets the same replies from here,
whatever the endpoint would say now: so it goes on to the bit. What failed is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from astra_rl.core.text import FinishReason, NoReply, Utterance
from astra_rl.errors import ConfigurationError, StorageError
from astra_rl.infra.jsonio import parse_own_json
from astra_rl.infra.redaction import redact
from astra_rl.infra.storage import storing
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.ledger import current_ledger

_SCHEMA = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"


class ReplyCache:
    """Replies by what they depend on. It may be used from any thread of one process.

    Each reply is safe on disk when `put` returns, against a kill of the process.

    Args:
        path: The file; made if it is missing.

    Raises:
        ConfigurationError: The file cannot be opened, or is something else.
        StorageError: The disk is full, or read-only.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        with self._named_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False
            )
            self._database.text_factory = bytes  # a damaged text may be no UTF-8
            # A crash of the machine may lose the last replies; a kill of the process none.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(_SCHEMA)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            with self._lock, storing(self.path):
                yield
        except StorageError:
            raise
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"cannot use {self.path} as a cache of replies ({error}). Remove it to begin a new "
                "one, for which all is asked again, or choose another file."
            ) from error

    def get(self, key: str) -> Utterance | None:
        """Return the reply of this key; None if there is none, or it is damaged.

        Raises:
            ConfigurationError: The file is damaged.
            StorageError: The disk is full, or read-only.
        """
        with self._named_errors():  # to look into it, SQLite writes to its log
            row = self._database.execute(
                "SELECT reply FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else _read(row[0])

    def put(self, key: str, reply: str) -> None:
        """Keep a reply; a `NoReply` is not kept.

        Raises:
            ConfigurationError: The file is damaged.
            StorageError: The disk is full, or read-only.
        """
        if isinstance(reply, NoReply):
            return
        reason = Utterance.of(reply).finish_reason
        text = redact(json.dumps({"text": well_formed(str(reply)), "finish_reason": reason}))
        with self._named_errors():
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))

    def __len__(self) -> int:
        with self._named_errors():
            count: int = self._database.execute("SELECT count(*) FROM replies").fetchone()[0]
        return count

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def answering(self) -> Iterator[ReplyCache]:
        """Answer what is known inside the block, and close the file at its end."""
        token = _cache.set(self)
        try:
            yield self
        finally:
            _cache.reset(token)
            self.close()


_cache: ContextVar[ReplyCache | None] = ContextVar("reply_cache", default=None)


def current_cache() -> ReplyCache | None:
    """Return the cache of the enclosing `ReplyCache.answering`; None outside of any."""
    return _cache.get()


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Answer what was answered before inside the block, in memory if no file keeps replies."""
    with contextlib.ExitStack() as stack:
        if current_cache() is None:
            stack.enter_context(ReplyCache(":memory:").answering())
        yield


ItemT = TypeVar("ItemT")
ReplyT = TypeVar("ReplyT", bound=str)
Told = Callable[[int, str], None]
"""Is told of a reply as soon as it is there, with the place of its item."""


def from_cache(
    name: str,
    items: Sequence[ItemT],
    key: Callable[[ItemT], str],
    ask: Callable[[Sequence[ItemT], Told], Sequence[ReplyT]],
) -> list[Utterance | ReplyT]:
    """Return replies that are known, and ask for the others; outside of any cache for all.

    Args:
        name: How the endpoint is called in the ledger.
        items: What is asked.
        key: Names what a reply depends on.
        ask: Is given the items that are new, and tells of each reply that is worth keeping.
    """
    cache = current_cache()
    if cache is None:
        return list(ask(items, lambda index, reply: None))
    keys = [key(item) for item in items]
    known = [cache.get(each) for each in keys]
    count = sum(reply is not None for reply in known)
    if count:
        current_ledger().cached(name, count)
    new = [row for row, reply in enumerate(known) if reply is None]
    answers = iter(
        ask([items[row] for row in new], lambda index, reply: cache.put(keys[new[index]], reply))
    )
    return [next(answers) if reply is None else reply for reply in known]


def cache_key(parts: Sequence[Any]) -> str:
    """Return the key of what a reply depends on, JSON values in order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(text: bytes) -> Utterance | None:
    try:
        kept = parse_own_json(text)
        reply, reason = kept["text"], kept["finish_reason"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(reply, str) or reason not in (None, *get_args(FinishReason)):
        return None
    return Utterance(reply, finish_reason=cast("FinishReason | None", reason))
