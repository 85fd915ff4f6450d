"""A cache of replies in a SQLite file, so that no call is paid for twice.

A resumed run repeats calls of the interrupted one and gets the same replies from the cache, so it
continues bit-exactly. Failed calls are not cached. Credentials in replies are sealed (see
`astra_rl.infra.redaction.seal_text`): the file has none, and a process that knows them gets the
reply as it was. For one that does not, the reply is unknown and the call is repeated.
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
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError, StorageError
from astra_rl.infra.jsonio import parse_own_json
from astra_rl.infra.redaction import learn_from_environment, open_text, seal_text
from astra_rl.infra.storage import storing
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.ledger import current_ledger

_SCHEMA = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"


class ReplyCache:
    """A persistent mapping of keys to replies; thread-safe within one process.

    When `put` returns, the reply survives a kill of the process.

    Args:
        path: The file; it is created if it does not exist.

    Raises:
        ConfigurationError: The file cannot be opened, or is not a reply cache.
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
            self._database.text_factory = bytes  # a damaged text may be invalid UTF-8
            # A kill of the process loses no reply; a crash of the machine may lose the last ones.
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
                f"cannot use {self.path} as a cache of replies ({error}). Remove it to start an "
                "empty cache (all calls are repeated), or choose another file."
            ) from error

    def get(self, key: str) -> Utterance | None:
        """Return the reply of a key; None if it is unknown or damaged.

        Raises:
            ConfigurationError: The file is damaged.
            StorageError: The disk is full, or read-only.
        """
        with self._named_errors():  # SQLite writes to its log even for reads
            row = self._database.execute(
                "SELECT reply FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else _read(row[0])

    def put(self, key: str, reply: str) -> None:
        """Store a reply; a `NoReply` is not stored.

        Raises:
            ConfigurationError: The file is damaged.
            StorageError: The disk is full, or read-only.
        """
        if isinstance(reply, NoReply):
            return
        reason = Utterance.of(reply).finish_reason
        learn_from_environment()
        sealed = seal_text(well_formed(str(reply)))
        row = {"text": sealed, "finish_reason": reason}
        if (thought := Utterance.of(reply).reasoning) is not None:
            row["reasoning"] = seal_text(well_formed(thought))
        if (calls := Utterance.of(reply).calls) is not None:
            row["calls"] = seal_text(json.dumps([call.as_json() for call in calls]))
        text = json.dumps(row)
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
        """Use this cache inside the block, and close the file at its end."""
        token = _cache.set(self)
        try:
            yield self
        finally:
            _cache.reset(token)
            self.close()


_cache: ContextVar[ReplyCache | None] = ContextVar("reply_cache", default=None)


def current_cache() -> ReplyCache | None:
    """Return the cache of the enclosing `ReplyCache.answering`; None if there is none."""
    return _cache.get()


@contextlib.contextmanager
def caching_replies() -> Iterator[None]:
    """Cache replies inside the block: in the current `ReplyCache`, or in memory without one."""
    with contextlib.ExitStack() as stack:
        if current_cache() is None:
            stack.enter_context(ReplyCache(":memory:").answering())
        yield


ItemT = TypeVar("ItemT")
ReplyT = TypeVar("ReplyT", bound=str)
OnReply = Callable[[int, str], None]
"""Called with the index of an item and its reply, as soon as the reply is known."""


def from_cache(
    name: str,
    items: Sequence[ItemT],
    key: Callable[[ItemT], str],
    ask: Callable[[Sequence[ItemT], OnReply], Sequence[ReplyT]],
) -> list[Utterance | ReplyT]:
    """Return cached replies, and get the others by calls; without a cache, all of them.

    Args:
        name: Name of the endpoint in the ledger.
        items: The inputs.
        key: Returns the cache key of an item; see `cache_key`.
        ask: Makes the calls for items that are not cached, and reports each reply to be cached.
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
    """Return the hash of what a reply depends on, given as JSON values in order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(text: bytes) -> Utterance | None:
    try:
        row = parse_own_json(text)
        reply, reason = open_text(row["text"]), row["finish_reason"]
        thought = open_text(row["reasoning"]) if "reasoning" in row else None
        written = open_text(row["calls"]) if "calls" in row else None
        calls = None if written is None else [ToolCall(**each) for each in parse_own_json(written)]
    except (ValueError, KeyError, TypeError):
        return None
    if reply is None or reason not in (None, *get_args(FinishReason)):
        return None
    if "calls" in row and written is None:
        return None
    return Utterance(
        reply,
        finish_reason=cast("FinishReason | None", reason),
        reasoning=thought,
        calls=calls,
    )
