"""What stands in `deploy/`: each file is read by the rules of its system, its command is run."""

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.shared.config import Config
from cluster.shared.config_file import load_config
from cluster.shared.key_files import make_key_files
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.status import read_status
from tests.support import wait_until
from tests.system.cluster_node import READY_LINE, cluster_environment
from tests.system.linked_nodes import SECRET, free_ports
from tests.system.packet_client import PacketClient

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="deploy/ is for Linux")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SMALL = "\n[workers]\ncount = 1\nspares = 0\n"


@contextmanager
def environment(tmp_path: Path, more: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Give an environment with a `cluster` on the path that runs this source."""
    binaries = tmp_path / "bin"
    binaries.mkdir(exist_ok=True)
    command = binaries / "cluster"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cluster "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(binaries), os.environ["PATH"]])
    yield cluster_environment({"PATH": path, **(more or {})})


@contextmanager
def running(
    tmp_path: Path, command: Sequence[str], more: Mapping[str, str] | None = None
) -> Iterator["Running"]:
    """Run a command until the end of the block; it is to drain on SIGTERM with 0."""
    name = f"stderr{len(list(tmp_path.glob('stderr*')))}"
    with (
        environment(tmp_path, more) as env,
        (tmp_path / name).open("wb") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            text=True,
            env=env,
            cwd=tmp_path,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = READY_LINE.fullmatch(line)
            assert match, (line, (tmp_path / name).read_text())
            yield Running(int(match["node"]), int(match["port"]))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, (tmp_path / name).read_text()
        finally:
            process.kill()


class Running:
    """A node that one of the commands has started."""

    def __init__(self, node: int, port: int) -> None:
        self.node = node
        self.port = port

    def check_echo(self) -> None:
        with PacketClient(self.port) as client:
            assert client.ask(7, b"hello") == (7, b"hello")


# -- systemd ---------------------------------------------------------------------------------------

UNIT = DEPLOY / "systemd" / "iocp-cluster@.service"
WORKER_UNIT = DEPLOY / "systemd" / "iocp-cluster-worker@.service"
WEBSOCKET_UNIT = DEPLOY / "systemd" / "iocp-cluster-websocket.service"


def unit(path: Path = UNIT) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


def command_of(path: Path, values: Mapping[str, str], what: str = "ExecStart") -> list[str]:
    """Return a command of a unit, with what systemd puts in for specifiers and variables."""
    text = unit(path)["Service"][what]
    for name, value in values.items():
        text = text.replace(name, value)
    assert not re.search(r"[%$]", text), text
    return shlex.split(text)


def test_the_commands_of_the_unit_run_a_node_and_reload_its_workers(tmp_path: Path):
    service = unit()["Service"]
    specifiers = {"%E": str(tmp_path / "etc"), "%t": str(tmp_path / "run"), "%i": "one"}
    (tmp_path / "etc" / "iocp-cluster").mkdir(parents=True)
    (tmp_path / "run" / service["RuntimeDirectory"].removesuffix("/%i")).mkdir(parents=True)
    config = tmp_path / "etc" / "iocp-cluster" / "one.toml"
    config.write_text('[node]\nid = 4\nlisten = "127.0.0.1:0"\n' + SMALL)
    with (
        environment(tmp_path) as env,
        running(tmp_path, command_of(UNIT, specifiers)) as node,
    ):
        assert node.node == 4
        node.check_echo()
        reload = command_of(UNIT, specifiers, "ExecReload")
        subprocess.run(reload, env=env, cwd=tmp_path, timeout=60, check=True)
        node.check_echo()


@pytest.mark.long
def test_the_command_of_the_workers_unit_serves_a_shard_from_elsewhere(tmp_path: Path):
    keys = tmp_path / "etc" / "iocp-cluster" / "keys"
    make_key_files(keys)
    config = tmp_path / "node.toml"
    config.write_text(
        f"""{SMALL}
        [remote]
        listen = "127.0.0.1:0"
        keys_dir = "{keys}"
        shards = [0]
        """
    )
    up = ["cluster", "up", "--config", str(config), "--listen", "127.0.0.1:0"]
    with (
        environment(tmp_path) as env,
        running(tmp_path, ["/usr/bin/env", *up, "--run-dir", str(tmp_path / "node")]) as node,
    ):
        status = read_status(RunDirectory(tmp_path / "node"))
        assert status is not None
        values = {
            "%E": str(tmp_path / "etc"),
            "%t": str(tmp_path / "run"),
            "%i": "0",
            "${GATEWAY}": f"tcp://{status.gateway.remote_listen}",
            "${APP}": "cluster.worker.echo:app",
        }
        worker = subprocess.Popen(command_of(WORKER_UNIT, values), env=env, cwd=tmp_path)
        try:
            node.check_echo()  # which waits for the worker: there is no other
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0
        finally:
            worker.kill()
            worker.wait()


def test_the_workers_unit_starts_it_again_unless_that_cannot_help():
    parser = unit(WORKER_UNIT)
    service = parser["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("always", "2")
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["RuntimeDirectory"] in service["ExecStart"]


def test_the_command_of_the_websocket_unit_lets_browsers_connect(tmp_path: Path):
    arguments = "--listen 127.0.0.1:0 --node 127.0.0.1:7777"
    service = unit(WEBSOCKET_UNIT)["Service"]
    with (
        environment(tmp_path) as env,
        subprocess.Popen(
            command_of(WEBSOCKET_UNIT, {"$ARGUMENTS": arguments}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("websocket ws://127.0.0.1:")
            process.send_signal(signal.SIGTERM)
            assert process.wait(float(service["TimeoutStopSec"])) == 0
        finally:
            process.kill()


def test_the_unit_leaves_the_processes_time_to_drain():
    service = unit()["Service"]
    drain_s = Config().supervisor.drain_timeout_s
    assert float(service["TimeoutStopSec"]) > drain_s + 2
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert service["RestartPreventExitStatus"] == "2"
    assert int(service["LimitNOFILE"]) > Config().gateway.max_sessions


@pytest.mark.parametrize("path", [UNIT, WORKER_UNIT, WEBSOCKET_UNIT], ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / path.name.replace("@", "@1")
    copy.write_text(path.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    # It reads the units of the machine as well; what it says of ours names it.
    about_ours = [line for line in done.stderr.splitlines() if "iocp-cluster" in line]
    assert about_ours == []


# -- supervisord -----------------------------------------------------------------------------------


def test_supervisord_runs_stops_and_replaces_a_node(tmp_path: Path):
    pytest.importorskip("supervisor")
    config = tmp_path / "node.toml"
    config.write_text('[node]\nlisten = "127.0.0.1:0"\n' + SMALL)
    run_directory = RunDirectory(tmp_path / "run")
    (tmp_path / "supervisord.conf").write_text(
        textwrap.dedent(
            f"""
            [supervisord]
            logfile={tmp_path}/supervisord.log
            pidfile={tmp_path}/supervisord.pid
            childlogdir={tmp_path}
            nodaemon=true
            {"user=root" if os.geteuid() == 0 else ""}
            [unix_http_server]
            file={tmp_path}/s
            [rpcinterface:supervisor]
            supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
            [supervisorctl]
            serverurl=unix://{tmp_path}/s
            [include]
            files={DEPLOY}/supervisord/*.conf
            """
        )
    )

    def tool(name: str, *arguments: str) -> list[str]:
        configuration = ["-c", str(tmp_path / "supervisord.conf")]
        return [sys.executable, "-m", f"supervisor.{name}", *configuration, *arguments]

    def gateway() -> int | None:
        status = read_status(run_directory)
        ready = status and all(worker.state == "ready" for worker in status.workers)
        return status.gateway.pid if status is not None and ready else None

    variables = {"CLUSTER_CONFIG": str(config), "CLUSTER_RUN_DIR": str(run_directory.path)}
    with (
        environment(tmp_path, variables) as env,
        (tmp_path / "supervisord.out").open("wb") as out,
        subprocess.Popen(
            tool("supervisord"), env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        ) as supervisord,
    ):
        try:
            first = wait_until(gateway, timeout_s=30, what="the node")
            holder = run_directory.holder("supervisor")
            assert holder is not None
            os.kill(holder, signal.SIGKILL)  # the node, not supervisord
            wait_until(
                lambda: gateway() not in (None, first), timeout_s=30, what="the node that replaces"
            )
            done = subprocess.run(
                tool("supervisorctl", "stop", "iocp-cluster"),
                env=env,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.stdout == "iocp-cluster: stopped\n", done
            assert read_status(run_directory) is None
        finally:
            supervisord.terminate()
            supervisord.wait(20)
    assert "exited: iocp-cluster (terminated by SIGKILL; not expected)" in (
        tmp_path / "supervisord.log"
    ).read_text("utf-8")
    assert "stopped: iocp-cluster (exit status 0)" in (tmp_path / "supervisord.log").read_text()


# -- containers ------------------------------------------------------------------------------------


def load_all(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def instructions() -> list[dict[str, Any]]:
    parse = pytest.importorskip("dockerfile_parse")
    parser = parse.DockerfileParser(fileobj=(DEPLOY / "container" / "Containerfile").open("rb"))
    with parser.fileobj:
        return list(parser.structure)


def exec_form(name: str) -> list[str]:
    """Return the arguments of the one instruction of the image that has this name."""
    (found,) = [step["value"] for step in instructions() if step["instruction"] == name]
    return [str(argument) for argument in yaml.safe_load(found.partition("CMD ")[2] or found)]


def test_the_image_can_do_what_the_page_says_of_etcd():
    page = (DEPLOY / "README.md").read_text("utf-8")
    assert "The image has the client library of etcd" in page
    (install,) = [s["value"] for s in instructions() if "pip install" in s["value"]]
    assert "'/source[etcd,websocket]'" in install
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert any("etcd3gw" in each for each in extras["optional-dependencies"]["etcd"])


def test_what_the_image_copies_is_there():
    copies = [step["value"] for step in instructions() if step["instruction"] == "COPY"]
    sources = [
        source for copy in copies if not copy.startswith("--from") for source in copy.split()[:-1]
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


@contextmanager
def linked_configuration(tmp_path: Path, text: str) -> Iterator[list[Path]]:
    """Give each node its own copy of `text`, with addresses of this machine."""
    names = re.findall(r'"(\d)@([^"]+)"', text)
    with free_ports(len(names)) as ports:
        for (_, address), port in zip(names, ports, strict=True):
            text = text.replace(f"@{address}", f"@127.0.0.1:{port}")
        paths = []
        for (node, _), port in zip(names, ports, strict=True):
            directory = tmp_path / f"etc{node}"
            directory.mkdir()
            (directory / "secret").write_text(SECRET)
            (directory / "secret").chmod(0o440)
            path = directory / "cluster.toml"
            path.write_text(
                re.sub(
                    r"/etc/iocp-cluster/(secret/)?",
                    f"{directory}/",
                    text.replace('"0.0.0.0:7800"', f'"127.0.0.1:{port}"'),
                )
                + SMALL
            )
            paths.append(path)
        yield paths


def wait_linked(run_directories: Sequence[Path], count: int) -> None:
    def linked(path: Path) -> bool:
        status = read_status(RunDirectory(path))
        return status is not None and [link.state for link in status.links] == ["linked"] * count

    wait_until(lambda: all(map(linked, run_directories)), timeout_s=30, what="all links")


@pytest.mark.long
def test_the_containers_of_compose_run_as_three_linked_nodes(tmp_path: Path):
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())
    entrypoint = exec_form("ENTRYPOINT")
    text = (DEPLOY / "container" / "cluster.toml").read_text()
    runs = []
    with linked_configuration(tmp_path, text) as configs, ExitStack() as stack:
        for number, (service, config) in enumerate(
            zip(compose["services"].values(), configs, strict=True), start=1
        ):
            assert {volume.split(":")[1] for volume in service["volumes"]} == {
                "/etc/iocp-cluster/cluster.toml",
                "/etc/iocp-cluster/secret",
            }
            runs.append(tmp_path / f"run{number}")
            replaced = {
                "/run/iocp-cluster": str(runs[-1]),
                "0.0.0.0:7777": "127.0.0.1:0",
                "/etc/iocp-cluster/cluster.toml": str(config),
            }
            command = [replaced.get(part, part) for part in [*entrypoint, *service["command"]]]
            node = stack.enter_context(running(tmp_path, command))
            assert node.node == number
        wait_linked(runs, 2)
        check = [{"/run/iocp-cluster": str(runs[0])}.get(p, p) for p in exec_form("HEALTHCHECK")]
        with environment(tmp_path) as env:
            assert subprocess.run(check, env=env, capture_output=True, check=False).returncode == 0


# -- Kubernetes ------------------------------------------------------------------------------------

MANIFESTS = DEPLOY / "kubernetes" / "iocp-cluster.yaml"


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in load_all(MANIFESTS) if each["kind"] == kind]
    return found


def test_the_manifests_are_valid():
    validate = pytest.importorskip("kubernetes_validate")
    for document in load_all(MANIFESTS):
        validate.validate(document, validate.latest_version(), strict=True)


def test_the_parts_of_the_manifests_fit_together(tmp_path: Path):
    stateful = manifest("StatefulSet")
    services = {
        each["metadata"]["name"]: each for each in load_all(MANIFESTS) if each["kind"] == "Service"
    }
    headless = services[stateful["spec"]["serviceName"]]
    assert headless["spec"]["clusterIP"] == "None"
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert all(service["spec"]["selector"] == labels for service in services.values())
    text = manifest("ConfigMap")["data"]["cluster.toml"]
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    config = load_config(path, {})
    name = stateful["metadata"]["name"]
    assert config.links.nodes == [
        f"{number + 1}@{name}-{number}.{headless['metadata']['name']}:7800"
        for number in range(stateful["spec"]["replicas"])
    ]
    grace = stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > config.supervisor.drain_timeout_s + 2
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert config.links.secret_file is not None
    assert str(Path(config.links.secret_file).parent) in mounted


def test_containers_have_no_rights_beyond_their_own_user():
    assert [step["value"] for step in instructions() if step["instruction"] == "USER"] == [
        "cluster"
    ]
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_command_of_a_pod_runs_the_node_of_its_number(tmp_path: Path):
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    text = manifest("ConfigMap")["data"]["cluster.toml"]
    with linked_configuration(tmp_path, text) as configs:
        for old, new in (
            ("/etc/iocp-cluster/cluster.toml", str(configs[1])),
            ("/run/iocp-cluster/node", str(tmp_path / "run")),
            ("0.0.0.0:7777", "127.0.0.1:0"),
        ):
            assert old in script
            script = script.replace(old, new)
        name = f"{manifest('StatefulSet')['metadata']['name']}-1"
        with running(tmp_path, [*container["command"], script], {"HOSTNAME": name}) as node:
            assert node.node == 2
            node.check_echo()
