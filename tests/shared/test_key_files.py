"""Keys of a gateway and of workers on other machines: who may read them, and who is known."""

import os
import stat
from pathlib import Path

import pytest

from cluster.shared import key_files
from cluster.shared.key_files import (
    KeyFileError,
    KnownWorkers,
    check_worker_name,
    make_key_files,
    read_gateway_keys,
    read_worker_keys,
)

PAIRS = ["gateway.key", "gateway.key_secret", "worker.key", "worker.key_secret"]

needs_modes = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_both_pairs_are_made_and_each_side_reads_its_own(tmp_path: Path):
    directory = tmp_path / "not" / "there"
    assert make_key_files(directory) == PAIRS
    assert sorted(files(directory)) == PAIRS
    gateway = read_gateway_keys(directory)
    gateway_key, worker = read_worker_keys(directory)
    assert gateway_key == gateway.public
    assert len({*gateway, *worker}) == 4
    assert KnownWorkers(directory).name_of(worker.public) == "worker"


@needs_modes
def test_files_and_directory_are_for_their_owner_only_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        make_key_files(tmp_path / "keys", ["berlin"])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("there", PAIRS)
def test_nothing_is_made_where_one_of_the_files_is_there(tmp_path: Path, there: str):
    (tmp_path / there).write_text("precious")
    with pytest.raises(KeyFileError, match=rf"{there} is there already.*--replace"):
        make_key_files(tmp_path)
    assert files(tmp_path) == {there: b"precious"}


def test_what_is_to_be_replaced_is(tmp_path: Path):
    make_key_files(tmp_path)
    before = files(tmp_path)
    make_key_files(tmp_path, replace=True)
    after = files(tmp_path)
    assert sorted(after) == sorted(before)
    assert all(after[name] != before[name] for name in PAIRS)


def test_a_machine_is_added_beside_others_whose_keys_stay(tmp_path: Path):
    make_key_files(tmp_path, ["berlin", "berlin"])
    before = files(tmp_path)
    assert sorted(before) == [
        *("berlin.key", "berlin.key_secret", "gateway.key", "gateway.key_secret"),
    ]
    make_key_files(tmp_path, ["oslo"])
    with pytest.raises(KeyFileError, match=r"berlin\.key is there already"):
        make_key_files(tmp_path, ["rome", "berlin"])
    make_key_files(tmp_path, ["oslo"], replace=True)
    after = files(tmp_path)
    assert after.keys() == before.keys() | {"oslo.key", "oslo.key_secret"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("name", ["", "gateway", "../up", "a/b", ".hidden", "a b", "x" * 64])
def test_a_name_that_is_none_is_told(name: str):
    with pytest.raises(ValueError, match="a name of letters"):
        check_worker_name(name)


def test_a_directory_that_cannot_be_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="choose another directory"):
        make_key_files(tmp_path / "file" / "keys", ["worker"])


# -- reading ---------------------------------------------------------------------------------------


def test_a_workers_directory_needs_its_own_pair_and_the_gateways_public_key(tmp_path: Path):
    make_key_files(tmp_path / "all", ["berlin", "oslo"])
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(KeyFileError, match=r"gateway\.key is not there"):
        read_worker_keys(here)
    copy(tmp_path / "all", here, "gateway.key")
    with pytest.raises(KeyFileError, match="holds no worker's key"):
        read_worker_keys(here)
    copy(tmp_path / "all", here, "oslo.key_secret")
    gateway_key, oslo = read_worker_keys(here)
    assert gateway_key == read_gateway_keys(tmp_path / "all").public
    assert KnownWorkers(tmp_path / "all").name_of(oslo.public) == "oslo"
    copy(tmp_path / "all", here, "berlin.key_secret")
    with pytest.raises(KeyFileError, match="berlin, oslo"):
        read_worker_keys(here)


@needs_modes
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path):
    make_key_files(tmp_path)
    for name, read in (("gateway", read_gateway_keys), ("worker", read_worker_keys)):
        path = tmp_path / f"{name}.key_secret"
        path.chmod(0o604)
        with pytest.raises(KeyFileError, match=rf"mode 604\); chmod 600 {path}"):
            read(tmp_path)
        path.chmod(0o640)  # as containers have it that do not run as its owner
        assert read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "public-key = 'short'\n", 'public-key = "' + "x" * 40 + '"\n', "\xff" * 50]
)
def test_a_file_that_holds_no_pair_is_told(tmp_path: Path, text: str):
    (tmp_path / "gateway.key_secret").write_text(text, "latin-1")
    with pytest.raises(KeyFileError, match=r"gateway\.key_secret holds no"):
        read_gateway_keys(tmp_path)


def test_the_known_workers_are_those_whose_keys_are_there_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_key_files(tmp_path / "all", ["berlin", "oslo"])
    berlin, oslo = tmp_path / "all" / "berlin.key", tmp_path / "all" / "oslo.key"
    make_key_files(tmp_path / "mine", ["rome"])
    known = KnownWorkers(tmp_path / "mine")
    keys = KnownWorkers(tmp_path / "all")
    public = {keys.name_of(key): key for key in keys._names}
    assert known.name_of(public["berlin"]) is None
    assert known.name_of(read_gateway_keys(tmp_path / "mine").public) is None
    copy(tmp_path / "all", tmp_path / "mine", berlin.name)
    assert known.name_of(public["berlin"]) == "berlin"
    (tmp_path / "mine" / "rome.key").unlink()
    copy(tmp_path / "all", tmp_path / "mine", oslo.name)
    assert known.name_of(public["oslo"]) == "oslo"
    assert len(known._names) == 2
    (tmp_path / "mine" / "half-copied.key").write_text("")
    assert known.name_of(public["oslo"]) == "oslo"
    assert "stay as they were" in caplog.text


def copy(source: Path, target: Path, name: str) -> None:
    (target / name).write_bytes((source / name).read_bytes())
    (target / name).chmod(0o600)


def test_more_keys_than_there_can_be_workers_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    make_key_files(tmp_path / "all", ["berlin", "oslo", "rome"])
    public = {name: key for key, name in KnownWorkers(tmp_path / "all")._names.items()}
    monkeypatch.setattr(key_files, "WORKERS_MAX", 2)
    with pytest.raises(KeyFileError, match="holds 3 keys; at most 2"):
        KnownWorkers(tmp_path / "all")
    (tmp_path / "all" / "rome.key").unlink()
    known = KnownWorkers(tmp_path / "all")
    make_key_files(tmp_path / "more", ["bonn"])
    copy(tmp_path / "more", tmp_path / "all", "bonn.key")
    assert known.name_of(public["oslo"]) == "oslo"
    assert "the keys of workers stay as they were" in caplog.text
