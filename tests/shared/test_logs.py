"""Each line of the log says by which process it is, and of which node where there are several."""

import logging
import os
from collections.abc import Iterator

import pytest

from cluster.shared import logs
from cluster.shared.config import Config, LinksConfig, NodeConfig
from cluster.shared.logs import change_role, configure_logging, follow_config


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_handler", logging.StreamHandler())
    monkeypatch.setattr(logs, "_said", {"node": "", "role": ""})
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def linked(node_id: int) -> Config:
    return Config(node=NodeConfig(id=node_id), links=LinksConfig(listen="127.0.0.1:0"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    logging.getLogger("cluster.worker").warning("it")
    return capsys.readouterr().err


def test_a_line_says_which_process_it_is_and_so_it_does_when_that_becomes_another(
    capsys: pytest.CaptureFixture[str],
):
    configure_logging("spare-1")
    follow_config(Config())
    assert f" WARNING spare-1[{os.getpid()}] cluster.worker: it\n" in said(capsys)
    change_role("worker-0")
    assert f" WARNING worker-0[{os.getpid()}] cluster.worker: it\n" in said(capsys)


def test_a_line_of_a_linked_node_says_which_node_it_is(capsys: pytest.CaptureFixture[str]):
    configure_logging("spare-1")
    follow_config(linked(0))  # etcd is to say which
    assert f" WARNING spare-1[{os.getpid()}] cluster.worker: it\n" in said(capsys)
    follow_config(linked(2))
    assert f" WARNING node-2 spare-1[{os.getpid()}] cluster.worker: it\n" in said(capsys)
    change_role("worker-0")
    assert f" WARNING node-2 worker-0[{os.getpid()}] cluster.worker: it\n" in said(capsys)


def test_the_level_is_that_of_the_configuration(capsys: pytest.CaptureFixture[str]):
    configure_logging("gateway")
    follow_config(Config(node=NodeConfig(log_level="error")))
    assert said(capsys) == ""
    logging.getLogger("game").setLevel(logging.DEBUG)
    try:
        logging.getLogger("game").debug("a level of its own")
    finally:
        logging.getLogger("game").setLevel(logging.NOTSET)
    assert " DEBUG gateway" in capsys.readouterr().err
    follow_config(Config(node=NodeConfig(log_level="debug")))
    logging.getLogger("cluster.worker").debug("it")
    assert " DEBUG gateway" in capsys.readouterr().err
