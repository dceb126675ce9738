"""Certificates for TLS, and the keys that belong to them: what cannot be used is told in a line."""

import ssl
from pathlib import Path

__all__ = ["CertificateError", "load_certificate"]


class CertificateError(Exception):
    """Files that hold no certificate with its key. The message names the files, in one line."""

    def __init__(self, message: str, *, is_key: bool = False) -> None:
        """`is_key`: the fault is that of the key's own file."""
        super().__init__(message)
        self.is_key = is_key


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Have connections from now on speak with `certificate`, a chain; its key may be in it.

    Raises CertificateError, and `context` stays as it was, if the files cannot be used.
    """
    files = [certificate] if key is None else [certificate, key]
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise CertificateError(
                f"{file}: cannot be read: {error.strerror}", is_key=file is key
            ) from None
    try:
        # A context that is given a new certificate and a key that does not fit loses its old ones.
        for each in (ssl.SSLContext(context.protocol), context):
            each.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        named = " and ".join(str(file) for file in files)
        raise CertificateError(
            f"{named}: no certificate with its key in PEM, which is not encrypted ({reason})"
        ) from None


def _no_password() -> str:
    """Stand in for the prompt with which OpenSSL would ask whoever is at the terminal."""
    raise ValueError("the key is encrypted")
