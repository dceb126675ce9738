"""The certificate with which a front speaks TLS."""

import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Final

from cluster.shared.config import ConfigError

__all__ = ["load_certificate", "make_tls_context"]

_TLS_READ_BYTES: Final = 32_768
"""What is received at once of a connection with TLS, which holds a buffer of that size."""


def make_tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return what a server speaks TLS with; raises what `load_certificate` raises."""
    # asyncio gives each connection a buffer of 256 KiB at once, and has no option for it.
    SSLProtocol.max_size = _TLS_READ_BYTES
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Have connections from now on speak with `certificate`, a chain; its key may be in it.

    Raises ConfigError, and `context` stays as it was, if the files cannot be used.
    """
    files = [certificate] if key is None else [certificate, key]
    for flag, file in zip(("--certificate", "--key"), files, strict=False):
        _check_readable(flag, file)
    try:
        # A context that is given a new certificate and a key that does not fit loses its old ones.
        for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            each.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        named = " and ".join(str(file) for file in files)
        raise ConfigError(
            f"--certificate: {named}: no certificate with its key in PEM, which is not encrypted "
            f"({reason})"
        ) from None


def _no_password() -> str:
    """Stand in for the prompt with which OpenSSL would ask whoever is at the terminal."""
    raise ValueError("the key is encrypted")


def _check_readable(flag: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{flag}: {file}: cannot be read: {error.strerror}") from None
