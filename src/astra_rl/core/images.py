"""Images in messages: data, never addresses, so that nothing is loaded when they are shown."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from astra_rl.errors import ConfigurationError

MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""Types of images, those that chat APIs accept."""
MOST_IMAGE_BYTES = 1_000_000
"""Most bytes of an image; records keep it whole."""


@dataclass(frozen=True)
class Image:
    """An image in a message.

    Attributes:
        media_type: One of `MEDIA_TYPES`.
        data: Its bytes in base64. They are not looked into.

    Raises:
        ConfigurationError: The type is unknown, or the data are no base64, empty or too long.
    """

    media_type: str
    data: str

    def __post_init__(self) -> None:
        if self.media_type not in MEDIA_TYPES:
            raise ConfigurationError(
                f"an image of the type {str(self.media_type)[:40]!a}; choose from "
                f"{', '.join(MEDIA_TYPES)}."
            )
        try:
            size = len(base64.b64decode(self.data, validate=True))
        except (binascii.Error, TypeError, ValueError) as error:
            raise ConfigurationError(f"the data of an image are no base64: {error}.") from error
        if not 0 < size <= MOST_IMAGE_BYTES:
            raise ConfigurationError(
                f"an image of {size} bytes; it must have 1 to {MOST_IMAGE_BYTES:,}."
            )

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Image:
        """Return an image of these bytes; see the class for what it raises."""
        return cls(media_type, base64.b64encode(data).decode("ascii"))

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.data) * 3 // 4 - self.data[-2:].count("=")

    @property
    def placeholder(self) -> str:
        """Type, size and digest, for readers that know only texts."""
        digest = hashlib.sha256(self.data.encode()).hexdigest()[:8]
        return f"[{self.media_type}, {self.size} bytes, {digest}]"

    @property
    def url(self) -> str:
        """The image as a ``data:`` URL, which chat APIs take."""
        return f"data:{self.media_type};base64,{self.data}"


def content_of(text: str, images: tuple[Image, ...]) -> str | list[dict[str, Any]]:
    """Return the content of a message in the form of the chat APIs: a text, or parts."""
    if not images:
        return text
    parts = [{"type": "image_url", "image_url": {"url": each.url}} for each in images]
    return [*([{"type": "text", "text": text}] if text else []), *parts]


def joined_contents(first: Any, second: Any) -> Any:
    """Return two contents in the form of the chat APIs as one."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n{second}"
    return [
        part
        for content in (first, second)
        for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]


def text_of_content(content: Any) -> str:
    """Return the text of a content in the form of the chat APIs, without its images."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def image_urls(content: Any) -> list[str]:
    """Return the URLs of the images in a content in the form of the chat APIs."""
    parts = [] if isinstance(content, str) else content
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
