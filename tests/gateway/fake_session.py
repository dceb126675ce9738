"""A session without a connection, for what keeps notes of sessions."""

__all__ = ["FakeSession"]


class FakeSession:
    """What a shard notes of a session for its successors."""

    address_text = "address"
    next_sequence = 1
    told_send_blocked = send_record_in_lane = False

    def __init__(self, session_id: int = 7) -> None:
        self.id = session_id
