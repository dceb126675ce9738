"""The file with the secret: what is taken, and what each refusal says."""

import sys
from pathlib import Path

import pytest

from cluster.gateway.links.secret import SECRET_BYTES_MIN, read_secret
from cluster.shared.private_files import PrivateFileError


def write(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_the_white_space_around_a_secret_does_not_count(tmp_path: Path, mode: int):
    assert read_secret(write(tmp_path, b" 0123456789abcdef\r\n", mode)) == b"0123456789abcdef"


@pytest.mark.parametrize("data", [b"", b"short\n", b" " * 100, b"x" * 5_000])
def test_a_secret_that_is_too_short_or_long_is_refused(tmp_path: Path, data: bytes):
    with pytest.raises(PrivateFileError, match=f"a secret has {SECRET_BYTES_MIN} to 4096"):
        read_secret(write(tmp_path, data))


def test_a_secret_that_cannot_be_read_is_told_with_the_command_that_makes_one(tmp_path: Path):
    with pytest.raises(PrivateFileError, match="head -c 32 /dev/urandom"):
        read_secret(tmp_path / "none")
    with pytest.raises(PrivateFileError, match="cannot be read"):
        read_secret(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no mode there")
@pytest.mark.parametrize("mode", [0o604, 0o620, 0o644])
def test_a_secret_that_belongs_to_others_too_is_refused(tmp_path: Path, mode: int):
    with pytest.raises(PrivateFileError, match="chmod 600"):
        read_secret(write(tmp_path, b"0123456789abcdef", mode))
