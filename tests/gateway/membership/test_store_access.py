"""A node proves to a real etcd who it is, by a password or a certificate, and checks the server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gateway.membership.entries import Entry
from cluster.gateway.membership.etcd_store import EtcdStore, StoreError
from cluster.gateway.membership.store_access import StoreAccess, check_store_access
from cluster.shared.config import LinksConfig
from cluster.shared.private_files import PrivateFileError
from tests.certificates import needs_openssl, self_signed
from tests.etcd_server import EtcdServer, EtcdUsers, needs_etcd, run_etcd

pytest.importorskip("etcd3gw")

TIMEOUT_S = 5.0
NOT_LET_IN = r"(?!.*verify failed).*(SSL|reset|closed|aborted)"
"""How an end of TLS shows depends on how far the client was."""
ENTRY = Entry(owner="mine", life="1", address="127.0.0.1:7800", takes_keys=True)


def write_password(directory: Path, password: str, mode: int = 0o600) -> Path:
    path = directory / "password"
    path.write_text(password)
    path.chmod(mode)
    return path


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with run_etcd(tmp_path / "etcd") as server:
        yield server


def store_of(etcd: EtcdServer, user: str, password_file: Path) -> EtcdStore:
    access = StoreAccess(user=user, password_file=str(password_file))
    return EtcdStore([etcd.url], "test", TIMEOUT_S, access)


@needs_etcd
def test_a_node_logs_in_and_again_when_its_password_was_changed(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    users = EtcdUsers(etcd)
    users.enable()
    store = store_of(etcd, "game", write_password(tmp_path, "of game\n"))
    joined = store.join(60, ENTRY, 0, 0, 1)
    assert joined.node == 1
    users.change_password("game", "another")
    write_password(tmp_path, "another\r\n")
    assert [each.node for each in store.renew(joined.lease)[1]] == [1]
    store.announce(1, joined.lease, ENTRY)
    users.change_password("game", "one more")
    write_password(tmp_path, "one more")
    store.leave(joined.lease)
    assert store.read() == []
    store.close()


@needs_etcd
def test_a_watch_begins_after_a_change_of_passwords_too(etcd: EtcdServer, tmp_path: Path) -> None:
    users = EtcdUsers(etcd)
    users.enable()
    password_file = write_password(tmp_path, "of game")
    store, watched = (store_of(etcd, "game", password_file) for _ in range(2))
    joined = store.join(60, ENTRY, 0, 0, 1)
    for password in ("of game", "another"):
        if password == "another":
            users.change_password("game", password)
            write_password(tmp_path, password)
        watch = watched.watch()
        next(watch)
        store.announce(1, joined.lease, ENTRY)
        next(watch)
        watched.stop_watch()
        with pytest.raises(StoreError):
            next(watch)
    for each in (store, watched):
        each.close()


@needs_etcd
def test_authentication_may_be_enabled_while_nodes_run(etcd: EtcdServer, tmp_path: Path) -> None:
    users = EtcdUsers(etcd)
    store = store_of(etcd, "game", write_password(tmp_path, "of game"))
    stranger = EtcdStore([etcd.url], "test", TIMEOUT_S)
    joined = store.join(60, ENTRY, 0, 0, 1)
    assert len(stranger.read()) == 1
    users.enable()
    assert len(store.renew(joined.lease)[1]) == 1
    with pytest.raises(StoreError, match=r"set links\.etcd_user and links\.etcd_password_file"):
        stranger.read()
    for each in (store, stranger):
        each.close()


@needs_etcd
@pytest.mark.parametrize(
    ("user", "password", "told"),
    [
        ("game", "of guest", r"links\.etcd_user = 'game' is not let in: .*invalid user ID or pass"),
        ("guest", "of guest", "permission denied"),
    ],
)
def test_who_is_not_let_in_is_told_why(
    etcd: EtcdServer, tmp_path: Path, user: str, password: str, told: str
) -> None:
    EtcdUsers(etcd).enable()
    store = store_of(etcd, user, write_password(tmp_path, password))
    with pytest.raises(StoreError, match=told):
        store.read()
    store.close()


@needs_etcd
def test_a_password_that_cannot_be_read_any_more_is_told(etcd: EtcdServer, tmp_path: Path) -> None:
    users = EtcdUsers(etcd)
    users.enable()
    path = write_password(tmp_path, "of game")
    store = store_of(etcd, "game", path)
    assert store.read() == []
    users.change_password("game", "another")
    path.unlink()
    with pytest.raises(StoreError, match=r"links\.etcd_password_file = .*: cannot be read \(No su"):
        store.read()
    store.close()


@needs_etcd
@needs_openssl
def test_certificates_prove_the_server_and_the_node(tmp_path: Path) -> None:
    both = self_signed(tmp_path)
    others = tmp_path / "others"
    others.mkdir()
    self_signed(others)
    ca, key = tmp_path / "certificate", tmp_path / "key"
    with run_etcd(tmp_path / "etcd", tmp_path) as etcd:
        for access in (
            StoreAccess(str(ca), str(ca), str(key)),
            StoreAccess(ca_file=str(ca), certificate_file=str(both)),
        ):
            store = EtcdStore([f"{etcd.url}/"], "test", TIMEOUT_S, access)
            assert store.read() == []
            store.close()
        for access, told in (
            (StoreAccess(certificate_file=str(both)), "certificate verify failed"),
            (StoreAccess(str(others / "certificate"), str(both)), "certificate verify failed"),
            (StoreAccess(ca_file=str(ca)), NOT_LET_IN),
        ):
            store = EtcdStore([etcd.url], "test", TIMEOUT_S, access)
            with pytest.raises(StoreError, match=told):
                store.read()
            store.close()


@needs_openssl
def test_the_authorities_of_the_environment_are_not_for_a_store_that_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests` would have those of the environment before all others."""
    both = self_signed(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    seen: list[object] = []
    store = EtcdStore(["https://127.0.0.1:1"], "test", 0.5, StoreAccess(ca_file=str(both)))
    session = store._clients[0].session
    monkeypatch.setattr(
        type(session), "_send", lambda self, request, **kwargs: seen.append(kwargs["verify"])
    )
    session.post("https://127.0.0.1:1/v3/kv/range", json={})
    assert seen == [str(both)]
    store.close()


# -- files -----------------------------------------------------------------------------------------


def refusal(**files: object) -> str:
    texts = {f"etcd_{name}": str(value) for name, value in files.items()}
    links = LinksConfig(membership="etcd", **texts)  # type: ignore[arg-type]
    with pytest.raises(PrivateFileError) as refused:
        check_store_access(links)
    told = str(refused.value)
    assert "\n" not in told
    return told


def test_nothing_is_wanted_of_who_says_nothing() -> None:
    assert check_store_access(LinksConfig()) == StoreAccess()


@needs_openssl
def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    both = self_signed(tmp_path)
    certificate, key, none = (tmp_path / name for name in ("certificate", "key", "none"))
    junk = tmp_path / "junk"
    junk.write_text("junk")
    links = LinksConfig(etcd_ca_file=str(certificate), etcd_certificate_file=str(both))
    assert check_store_access(links).certificate_file == str(both)
    assert refusal(ca_file=none) == (
        f"links.etcd_ca_file = {none}: cannot be read (No such file or directory)"
    )
    assert refusal(ca_file=junk).startswith(f"links.etcd_ca_file = {junk}: no certificates in PEM")
    assert refusal(certificate_file=none) == (
        f"links.etcd_certificate_file = {none}: cannot be read: No such file or directory"
    )
    assert refusal(certificate_file=certificate, key_file=none).startswith(
        f"links.etcd_key_file = {none}: cannot be read: "
    )
    told = refusal(certificate_file=certificate)
    assert told.startswith(f"links.etcd_certificate_file = {certificate}: no certificate with its ")
    encrypted = tmp_path / "encrypted"
    subprocess.run(
        [
            *("openssl", "rsa", "-aes256", "-passout", "pass:secret"),
            *("-in", str(key), "-out", str(encrypted)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert "(the key is encrypted)" in refusal(certificate_file=certificate, key_file=encrypted)


@needs_openssl
@pytest.mark.skipif(sys.platform == "win32", reason="files have no mode there")
def test_a_key_that_others_can_read_is_told(tmp_path: Path) -> None:
    both = self_signed(tmp_path)
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    for file in (both, key):
        file.chmod(0o644)
    told = refusal(certificate_file=both)
    assert told.startswith(f"links.etcd_certificate_file = {both}: others may read or write it")
    told = refusal(certificate_file=certificate, key_file=key)
    assert told == (
        f"links.etcd_key_file = {key}: others may read or write it (mode 644); chmod 600 {key}"
    )


@pytest.mark.parametrize(
    ("password", "told"),
    [
        (b"", "0 bytes; a password has 1 to 4096"),
        (b"\n", "1 bytes; a password has 1 to 4096"),
        (b"x" * 5_000, "a password has 1 to 4096"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_password_that_is_none_is_told(tmp_path: Path, password: bytes, told: str) -> None:
    path = write_password(tmp_path, "")
    path.write_bytes(password)
    assert refusal(user="game", password_file=path).endswith(told)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no mode there")
def test_a_password_that_others_can_read_is_told(tmp_path: Path) -> None:
    path = write_password(tmp_path, "secret", 0o644)
    assert refusal(user="game", password_file=path).endswith(f"chmod 600 {path}")
