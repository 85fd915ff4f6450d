"""A secret key of the user, which authenticates and hides what is stored in run folders."""

from __future__ import annotations

import contextlib
import functools
import secrets

from astra_rl.errors import AstraError
from astra_rl.infra.first_use import stored_once
from astra_rl.infra.storage import cache_dir

KEY_BYTES = 32


@functools.cache
def user_key() -> bytes:
    """Return the key in ``user.key`` of the cache folder, made on first use and private.

    If it can neither be read nor stored, a key of this process only is returned. Whatever was made
    with another key is then not recognised, and made again.
    """
    with contextlib.suppress(OSError, AstraError):
        path = cache_dir() / "user.key"
        if path.is_file():
            if len(known := path.read_bytes()) == KEY_BYTES:
                return known
            path.unlink()
        return stored_once(path, secrets.token_bytes(KEY_BYTES))
    return secrets.token_bytes(KEY_BYTES)
