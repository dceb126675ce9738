"""The certificate with which a front speaks TLS."""

import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Final

from cluster.shared import certificates
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
    try:
        certificates.load_certificate(context, certificate, key)
    except certificates.CertificateError as error:
        flag = "--key" if error.is_key else "--certificate"
        raise ConfigError(f"{flag}: {error}") from None
