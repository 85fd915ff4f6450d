"""What is made on first use and kept in the cache folder, the same for all processes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def stored_once(path: Path, made: bytes) -> bytes:
    """Store what was made, readable by the user only, unless another process was faster.

    Args:
        path: The file; its folder is made.
        made: The content.

    Returns:
        The content of the file: `made`, or what the other process has stored.

    Raises:
        OSError: It can be neither stored nor read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(made)
        os.link(temporary, path)
    except FileExistsError:
        return path.read_bytes()
    except OSError:
        temporary.replace(path)  # a file system without hard links
    finally:
        temporary.unlink(missing_ok=True)
    return made
