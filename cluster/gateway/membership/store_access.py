"""By what a node knows the servers of the store, and by what they know the node."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from cluster.shared.certificates import CertificateError, load_certificate
from cluster.shared.config import LinksConfig
from cluster.shared.private_files import PrivateFileError, find_open_mode, read_private_file

__all__ = ["StoreAccess", "check_store_access"]

PASSWORD_BYTES_MAX = 4_096


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """Where certificates and a password are; None: there are none."""

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    user: str | None = None
    password_file: str | None = None

    def read_password(self) -> str:
        """Return the password of `user`, as the file has it now; raises PrivateFileError."""
        assert self.password_file is not None, "the configuration was checked"
        path = Path(self.password_file)
        data = read_private_file("links.etcd_password_file", path, PASSWORD_BYTES_MAX)
        try:
            password = data.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise PrivateFileError(f"links.etcd_password_file = {path}: not UTF-8") from None
        if not password or len(data) > PASSWORD_BYTES_MAX:
            raise PrivateFileError(
                f"links.etcd_password_file = {path}: {len(data)} bytes; a password has 1 to "
                f"{PASSWORD_BYTES_MAX}"
            )
        return password


def check_store_access(links: LinksConfig) -> StoreAccess:
    """Return what `links` says of it; PrivateFileError if one of the files cannot be used."""
    access = StoreAccess(
        links.etcd_ca_file,
        links.etcd_certificate_file,
        links.etcd_key_file,
        links.etcd_user,
        links.etcd_password_file,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if access.ca_file is not None:
        _check_ca(context, access.ca_file)
    if access.certificate_file is not None:
        _check_certificate(context, access.certificate_file, access.key_file)
    if access.user is not None:
        access.read_password()
    return access


def _check_ca(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise PrivateFileError(
            f"links.etcd_ca_file = {file}: no certificates in PEM ({error.reason})"
        ) from None
    except OSError as error:
        raise PrivateFileError(
            f"links.etcd_ca_file = {file}: cannot be read ({error.strerror})"
        ) from None


def _check_certificate(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    try:
        load_certificate(context, Path(certificate), None if key is None else Path(key))
    except CertificateError as error:
        name = "links.etcd_key_file" if error.is_key else "links.etcd_certificate_file"
        raise PrivateFileError(f"{name} = {error}") from None
    name = "links.etcd_key_file" if key else "links.etcd_certificate_file"
    path = Path(key or certificate)
    if reason := find_open_mode(path, path.stat().st_mode):
        raise PrivateFileError(f"{name} = {path}: {reason}")
