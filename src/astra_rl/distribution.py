"""The distribution that installed this package: its name, its version and its extras.

The distribution is not named as the package is: on the public package index ``astra-rl`` is
another project.
"""

from __future__ import annotations

import importlib.metadata

NAME = "astra-rl-toolbox"


def version() -> str:
    """Return the version that is installed.

    Raises:
        importlib.metadata.PackageNotFoundError: The package is read from a folder that was not
            installed.
    """
    return importlib.metadata.version(NAME)


def requirements(extra: str) -> list[str]:
    """Return what an extra installs, for instance ``["detoxify>=0.5.2"]``.

    The list is empty for an unknown extra, and if the package was not installed.
    """
    try:
        required = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for each in required:
        requirement, _, marker = each.partition(";")
        if marker.replace("'", '"').strip() == f'extra == "{extra}"':
            found.append(requirement.strip())
    return found


def how_to_install(extra: str) -> str:
    """Return a command that installs the packages of an extra wherever this package came from."""
    packages = requirements(extra)
    if not packages:
        return f"install astra-rl again with its extra [{extra}]"
    return "pip install " + " ".join(f"'{each}'" for each in packages)


__all__ = ["NAME", "how_to_install", "requirements", "version"]
