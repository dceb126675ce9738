"""Certificates for tests, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def self_signed(directory: Path) -> Path:
    """Return a file with a certificate for `localhost` and 127.0.0.1, and its key.

    It has no common name: etcd refuses clients with one that have a user as well. Beside it are
    both by themselves: `certificate` and `key`. Keys are for their owner only.
    """
    key, certificate, both = (directory / name for name in ("key", "certificate", "both.pem"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/O=tests", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    both.touch(0o600)
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return both
