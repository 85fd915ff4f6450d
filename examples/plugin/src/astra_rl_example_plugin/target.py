"""A target: what is tested. A function of the last message is the shortest form."""


def echo(message: str) -> str:
    """Return the message in capital letters."""
    return message.upper()
