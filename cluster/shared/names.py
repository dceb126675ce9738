"""Names that applications give: user ids and the like. 1 to 255 bytes of UTF-8, in one place."""

__all__ = ["NAME_BYTES_MAX", "decode_name", "encode_name"]

NAME_BYTES_MAX = 255


def encode_name(name: str, what: str) -> bytes:
    """Return `name`, which is `what` ("user id"), as it goes into a record.

    Raises TypeError for what is no str, ValueError for one that is empty, too long, or no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a {what} is a str, not {type(name).__name__}: {name!r}")
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {name!r} cannot be written as UTF-8") from None
    if not 0 < len(data) <= NAME_BYTES_MAX:
        raise ValueError(
            f"a {what} of {len(data)} bytes; give 1 to {NAME_BYTES_MAX} bytes of UTF-8"
        )
    return data


def decode_name(data: bytes) -> str | None:
    """Return the name that `data` holds; None if it is none: the other side cannot be trusted."""
    if not 0 < len(data) <= NAME_BYTES_MAX:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
