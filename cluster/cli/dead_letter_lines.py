"""Dead letters, a line each."""

from cluster.shared.dead_letters import DeadLetter

__all__ = ["dead_letter_line"]


def dead_letter_line(number: int, letter: DeadLetter) -> str:
    """Return the line of `letter`, the `number`-th from the oldest."""
    what = letter.kind
    if letter.sequence is None and letter.payload is not None:
        what = f"{letter.kind} ({len(letter.payload)} bytes)"
    elif letter.payload is not None:
        what = f"packet {letter.sequence} (id {letter.packet_id}, {len(letter.payload)} bytes)"
    return (
        f"{number} {letter.time} shard {letter.shard} session {letter.session:#x} "
        f"{letter.address} {what}: {letter.deaths} deaths"
    )
