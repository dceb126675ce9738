"""The supervisor against gateways that a real one never is, with real processes and signals."""

import errno
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import zmq

from cluster.shared import config as config_module
from cluster.shared.config import Config, NodeConfig, SupervisorConfig, WorkersConfig
from cluster.shared.process import spawn
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor import gateway_keeper, node, restart_policy, supervisor
from cluster.supervisor.child import Child
from cluster.supervisor.gateway_link import GatewayLink
from cluster.supervisor.supervisor import supervise
from tests.supervisor.fake_gateway import DEATHS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

ROOT = Path(__file__).parents[2]
SLEEPS = ("-c", "import time; time.sleep(600)")
CANNOT_BE_MADE = ("cannot be made",)
DIES = ("-c", "raise SystemExit(3)")
LOSES_THE_GATEWAY = ("-c", "import time; time.sleep(0.2); raise SystemExit(1)")
ENDS_THE_NODE = (
    "-c",
    "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)",
)
READY_LINE = "ready node=7 listen=[::1]:99 workers=1 driver=readiness lane=zmq\n"

CONFIG = Config(
    node=NodeConfig(listen="[::1]:0"),
    workers=WorkersConfig(count=1, spares=0),
    supervisor=SupervisorConfig(drain_timeout_s=0.1),
)


Supervise = Callable[..., int]


@pytest.fixture
def supervise_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervise:
    """Run a supervisor whose gateway behaves as named.

    Its workers are, one after the other, Python with the arguments given; the last ones stay.
    Its spares are all alike.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(supervisor, "DRAIN_GRACE_S", 0.5)
    # The pauses double from here; the rule itself is tested without a clock.
    monkeypatch.setattr(restart_policy, "BACKOFF_FIRST_S", 0.01)
    started: list[subprocess.Popen[bytes]] = []

    def launch(role: str, *arguments: str) -> Child:
        if arguments == CANNOT_BE_MADE:
            raise OSError(errno.EAGAIN, "no more processes")
        started.append(spawn([sys.executable, *arguments], os.environ))
        return Child(role, started[-1])

    def run(
        behaviour: str,
        *workers: tuple[str, ...],
        config: Config = CONFIG,
        spare: tuple[str, ...] = SLEEPS,
    ) -> int:
        worker_arguments = itertools.chain(
            workers, itertools.repeat(workers[-1] if workers else SLEEPS)
        )

        def launch_gateway(run_directory: RunDirectory) -> Child:
            script = str(Path(__file__).with_name("fake_gateway.py"))
            endpoint = run_directory.sockets.control_endpoint()
            return launch("gateway", script, behaviour, endpoint, str(os.getpid()))

        def launch_worker(
            run_directory: RunDirectory, shard: int, python: Sequence[str] = ()
        ) -> Child:
            return launch(f"worker {shard}", *next(worker_arguments))

        monkeypatch.setattr(gateway_keeper, "launch_gateway", launch_gateway)

        def launch_spare(
            run_directory: RunDirectory, number: int, python: Sequence[str] = ()
        ) -> Child:
            return launch(f"spare {number}", *spare)

        monkeypatch.setattr(node, "launch_worker", launch_worker)
        monkeypatch.setattr(node, "launch_spare", launch_spare)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        handlers = {number: signal.getsignal(number) for number in numbers}
        try:
            return supervise(config, RunDirectory(tmp_path / "run"))
        finally:
            assert {signal.getsignal(number) for number in handlers} == {signal.SIG_IGN}
            for number, handler in handlers.items():
                signal.signal(number, handler)
            assert all(process.returncode is not None for process in started), "a child was left"

    return run


def test_a_drain_that_the_gateway_reports_is_code_0(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    assert supervise_fakes("drains") == 0
    assert capfd.readouterr().out == READY_LINE


def test_a_gateway_that_ends_with_0_in_a_drain_has_drained(supervise_fakes: Supervise):
    assert supervise_fakes("drains silently") == 0


def test_a_gateway_that_drained_and_stays_is_killed_when_the_time_is_up(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    assert supervise_fakes("drains and stays") == 0
    assert "killed: gateway (pid " in caplog.text


def test_a_drain_that_is_never_over_is_code_1(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    assert supervise_fakes("ignores") == 1
    assert "the time to drain is up; killed: gateway (pid " in caplog.text


def test_a_gateway_that_dies_in_a_drain_is_code_1(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    assert supervise_fakes("dies") == 1
    assert "the gateway ended with exit code 5 before it was drained" in caplog.text


def test_a_gateway_that_refuses_its_supervisor_is_code_2(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    assert supervise_fakes("refuses") == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert "cluster: the gateway refuses its supervisor: you are from another time\n" in output.err


def test_a_child_that_cannot_start_ends_a_node_that_was_never_ready(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    assert supervise_fakes("refuses nothing", ("-c", "raise SystemExit(2)")) == 2
    told = capfd.readouterr().err
    assert told == "cluster: worker 0 ended with exit code 2 and did not say why\n"


def test_what_keeps_workers_from_starting_is_told_once(
    supervise_fakes: Supervise, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Also when it comes up in a node that was ready, in one life after the other."""
    serves = ("-c", "import time; time.sleep(2); raise SystemExit(3)")
    fails = (
        "-c",
        "import os, pathlib; from cluster.shared.run_directory import RunDirectory\n"
        "from cluster.shared.start_failure import StartFailure, write_start_failure\n"
        f"directory = RunDirectory(pathlib.Path({str(tmp_path / 'run')!r}))\n"
        "failure = StartFailure(os.getpid(), 'cluster worker: no such app')\n"
        "write_start_failure(directory, 'worker-0', failure)\n"
        "raise SystemExit(2)",
    )
    assert supervise_fakes("has the first worker", serves, fails) == 3
    told = capfd.readouterr()
    assert told.out == READY_LINE
    reason, end = told.err.splitlines()
    assert reason == "cluster worker: no such app"
    assert end.startswith("cluster: gave up restarting worker 0: 5 lives in ")


def test_a_worker_that_takes_long_to_start_is_told_of_once(
    supervise_fakes: Supervise,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(config_module, "SLOW_START_MAX_S", 0.1)
    config = msgspec.structs.replace(CONFIG, node=NodeConfig(listen="[::1]:0", app="slow:app"))
    ends_later = ("-c", "import time; time.sleep(4)\n" + ENDS_THE_NODE[1])
    assert supervise_fakes("never has workers", ends_later, config=config) == 1
    [told] = [line for line in caplog.messages if line.startswith("worker 0 (pid ")]
    assert "is not ready after 0.1 s; the import of 'slow:app', or its on_start, takes long" in told
    assert len([line for line in caplog.messages if line.startswith("the gateway (pid ")]) <= 1


def test_a_worker_that_always_ends_is_given_up_and_named(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    assert supervise_fakes("never has workers", DIES) == 3
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("cluster: gave up restarting worker 0: 5 lives in ")
    assert told.err.endswith("the last ended with exit code 3\n")


def test_a_worker_that_is_given_up_in_a_drain_is_code_3(
    supervise_fakes: Supervise, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "DRAIN_GRACE_S", 2.0)  # time for five lives
    assert supervise_fakes("ignores", DIES) == 3


def test_a_node_whose_processes_cannot_be_made_at_first_cannot_start(supervise_fakes: Supervise):
    with pytest.raises(OSError, match="no more processes"):
        supervise_fakes("drains", CANNOT_BE_MADE)


def test_a_successor_that_cannot_be_made_is_tried_again(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(node, "LAUNCH_RETRY_S", 0.05)
    assert supervise_fakes("has the second worker", DIES, CANNOT_BE_MADE, SLEEPS) == 0
    assert f"cannot start worker 0: [Errno {errno.EAGAIN}] no more processes; trying" in caplog.text


def test_a_gateway_whose_link_cannot_be_opened_is_tried_again(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(node, "LAUNCH_RETRY_S", 0.05)
    opened = itertools.count(1)

    def open_or_refuse(context: "zmq.Context[zmq.Socket[bytes]]") -> object:
        if next(opened) == 2:
            raise zmq.ZMQError(errno.EMFILE)
        return GatewayLink(context)

    monkeypatch.setattr(gateway_keeper, "GatewayLink", open_or_refuse)
    assert supervise_fakes("ends") == 3
    assert "cannot start the gateway: " in caplog.text
    assert "no socket for its messages: Too many open files; trying again" in caplog.text
    assert caplog.text.count("trying again in 0.05 s") == 1


def test_a_stuck_worker_is_killed_and_succeeded(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    assert supervise_fakes("finds the first worker stuck") == 0
    assert "worker 0 (pid " in caplog.text
    assert "is stuck; killed" in caplog.text
    assert "signal 9 (SIGKILL); successor at once" in caplog.text  # it had committed a record


def test_a_worker_that_broke_a_rule_is_killed_at_once_and_told_with_the_rule(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    assert supervise_fakes("fences the first worker") == 0
    assert "was fenced by the gateway: a record of no kind" in caplog.text
    assert "stuck" not in caplog.text
    assert "signal 9 (SIGKILL); successor at once" in caplog.text


def test_deaths_that_led_to_something_being_set_aside_are_not_counted(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    # Long enough for the report of a death to be there before the next one.
    monkeypatch.setattr(restart_policy, "BACKOFF_FIRST_S", 0.1)
    assert supervise_fakes("sets something aside at each death") == 0
    assert caplog.text.count("signal 15 (SIGTERM); successor in 0.1 s") == DEATHS


def test_a_gateway_that_always_ends_is_given_up_and_named(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    assert supervise_fakes("ends") == 3
    assert capfd.readouterr().err.startswith("cluster: gave up restarting gateway: 5 lives in ")


QUICK_TO_LOSE = msgspec.structs.replace(
    CONFIG, workers=WorkersConfig(count=1, spares=0, worker_timeout_s=0.3)
)


def silences(caplog: pytest.LogCaptureFixture) -> list[float]:
    """Return for how long each gateway was silent that was killed for that."""
    told = re.findall(r"gateway \(pid \d+\) has shown no sign of life for (.+?) s; k", caplog.text)
    return [float(seconds) for seconds in told]


def test_a_gateway_that_was_ready_and_falls_silent_is_killed_and_replaced(
    supervise_fakes: Supervise,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
):
    assert supervise_fakes("never has workers", config=QUICK_TO_LOSE) == 3
    assert len(silences(caplog)) == 5
    assert min(silences(caplog)) >= 0.3
    assert "gateway (pid " in caplog.text
    assert "signal 9 (SIGKILL); successor in 0.01 s" in caplog.text
    told = capfd.readouterr().err
    assert told.startswith("cluster: gave up restarting gateway: 5 lives in ")


def test_a_gateway_that_hangs_in_a_long_drain_is_killed_and_that_is_code_1(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    patient = msgspec.structs.replace(
        QUICK_TO_LOSE, supervisor=SupervisorConfig(drain_timeout_s=600.0)
    )
    assert supervise_fakes("ignores", config=patient) == 1
    (silence,) = silences(caplog)
    assert silence >= 0.3
    assert "signal 9 (SIGKILL) before it was drained" in caplog.text


def test_a_gateway_that_never_gets_ready_is_killed(
    supervise_fakes: Supervise,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(gateway_keeper, "READY_WITHIN_S", 0.2)
    assert supervise_fakes("never answers", config=QUICK_TO_LOSE) == 3
    assert len(silences(caplog)) == 5
    assert min(silences(caplog)) >= 0.3


def test_workers_that_end_because_the_gateway_is_silent_are_not_given_up(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    workers = [LOSES_THE_GATEWAY] * 7
    assert supervise_fakes("never answers", *workers, ENDS_THE_NODE, config=QUICK_TO_LOSE) == 0
    assert caplog.text.count("has lost the gateway") == 7


def test_workers_that_lose_a_gateway_that_others_hear_are_given_up(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    assert supervise_fakes("never has workers", LOSES_THE_GATEWAY) == 3
    assert capfd.readouterr().err.startswith("cluster: gave up restarting worker 0: 5 lives in ")


ONE_SPARE = msgspec.structs.replace(
    CONFIG, workers=WorkersConfig(count=1, spares=1, worker_timeout_s=0.3)
)


def test_a_spare_that_always_ends_before_the_node_was_ready_is_given_up_and_named(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    patient = msgspec.structs.replace(ONE_SPARE, workers=WorkersConfig(count=1, spares=1))
    assert supervise_fakes("never has workers", config=patient, spare=DIES) == 3
    assert capfd.readouterr().err.startswith("cluster: gave up restarting spare 5: 5 lives in ")


def test_a_spare_that_cannot_start_ends_a_node_that_was_never_ready(
    supervise_fakes: Supervise, capfd: pytest.CaptureFixture[str]
):
    cannot = ("-c", "raise SystemExit(2)")
    assert supervise_fakes("never has workers", config=ONE_SPARE, spare=cannot) == 2
    told = capfd.readouterr().err
    assert told == "cluster: spare 1 ended with exit code 2 and did not say why\n"


def test_spares_that_end_because_the_gateway_is_silent_are_not_given_up(
    supervise_fakes: Supervise, caplog: pytest.LogCaptureFixture
):
    workers = [LOSES_THE_GATEWAY] * 7
    outcome = supervise_fakes(
        "never answers", *workers, ENDS_THE_NODE, config=ONE_SPARE, spare=LOSES_THE_GATEWAY
    )
    assert outcome == 0
    told = [line for line in caplog.messages if line.endswith("has lost the gateway")]
    assert len([line for line in told if line.startswith("spare ")]) >= 5


def test_a_node_is_recorded_for_status_and_keeps_its_port(
    supervise_fakes: Supervise, tmp_path: Path
):
    assert supervise_fakes("drains") == 0
    directory = RunDirectory(tmp_path / "run")
    expected = msgspec.structs.replace(CONFIG.node, listen="[::1]:99")
    assert directory.read_config().node == expected
    assert (directory.path / "supervisor.json").exists()
