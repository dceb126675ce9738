"""Whether a process may open what it needs, said before it opens anything.

ZeroMQ aborts a process that has no descriptor left for it, without a word of what is wrong.
"""

from cluster.shared.process import raise_descriptor_limit

__all__ = ["REMEDY", "TooFewDescriptorsError", "check_descriptors"]

REMEDY = "raise the limit (ulimit -Hn, LimitNOFILE)"


class TooFewDescriptorsError(OSError):
    """The limit of open files is too low; the message is one line with the remedy."""


def check_descriptors(what: str, needed: int) -> None:
    """Raise the limit of open files to the `needed` ones of `what`, if it is lower.

    Raises TooFewDescriptorsError where that is not allowed.
    """
    limit = raise_descriptor_limit(needed)
    if limit < needed:
        raise TooFewDescriptorsError(
            f"{what} needs {needed} open files, and {limit} are allowed here: {REMEDY}"
        )
