"""The payload of a `drain` record: for how many seconds the sessions may stay, as f64."""

from struct import Struct
from struct import error as StructError

from cluster.shared.records import RecordError

__all__ = ["pack_drain", "read_drain"]

_SECONDS = Struct("<d")


def pack_drain(seconds: float) -> bytes:
    """Return the payload that tells `seconds`."""
    return _SECONDS.pack(seconds)


def read_drain(payload: bytes) -> float:
    """Return what `pack_drain` made into `payload`; RecordError for anything else."""
    try:
        (seconds,) = _SECONDS.unpack(payload)
    except StructError:
        raise RecordError(f"a `drain` record of {len(payload)} bytes") from None
    return float(seconds)
