"""A secret key of the user, which authenticates and hides what is stored in run folders."""

from __future__ import annotations

import contextlib
import functools
import secrets
import tempfile
from pathlib import Path

from astra_rl.errors import AstraError
from astra_rl.infra.storage import cache_dir

KEY_BYTES = 32


@functools.cache
def user_key() -> bytes:
    """Return the key in ``user.key`` of the cache folder, made on first use and private.

    If it can neither be read nor stored, a key of this process only is returned. Whatever was made
    with another key is then not recognised, and made again.
    """
    made = secrets.token_bytes(KEY_BYTES)
    with contextlib.suppress(OSError, AstraError):
        path = cache_dir() / "user.key"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and len(known := path.read_bytes()) == KEY_BYTES:
            return known
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".user.key-")
        with open(descriptor, "wb") as file:
            file.write(made)
        Path(temporary).replace(path)
    return made
