"""The clients in other languages, against a node, where there is what runs them."""

import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import AF_INET6, create_server
from threading import Thread

import pytest

from tests.certificates import needs_openssl, self_signed
from tests.system.cluster_node import ROOT, ClusterNode

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the nodes of these tests need signals"
)

CLIENTS = ROOT / "examples" / "clients"
MCS, MONO, NODE = (shutil.which(name) for name in ("mcs", "mono", "node"))

ROUND_TRIPS = 400
"""Packets of each program, of 0 to 65,531 bytes, all sent before the first answer is looked at."""

CSHARP = """
using System;
using System.Threading.Tasks;

static class Program
{
    static int Main(string[] args)
    {
        try { return Run(int.Parse(args[0]), int.Parse(args[1]), args.Length > 2).Result; }
        catch (AggregateException error)
        {
            Console.WriteLine(error.InnerException.GetType().Name);
            return 8;
        }
    }

    static byte[] PayloadOf(int number, int count)
    {
        var payload = new byte[number == count - 1 ? 65531 : number * 7919 % 3001];
        for (int i = 0; i < payload.Length; i++) payload[i] = (byte)(number + i * 31);
        return payload;
    }

    static async Task SendAll(PacketClient client, int count)
    {
        for (int number = 0; number < count; number++)
            await client.Send((ushort)(60000 + number), PayloadOf(number, count));
    }

    static async Task<int> Run(int port, int count, bool useTls)
    {
        using (var client = await PacketClient.Connect("localhost", port, useTls))
        {
            var sending = SendAll(client, count);
            for (int number = 0; number < count; number++)
            {
                if (!(await client.Receive() is Packet packet)) return 3;
                if (packet.Id != 60000 + number) return 4;
                var expected = PayloadOf(number, count);
                if (Convert.ToBase64String(packet.Payload) != Convert.ToBase64String(expected))
                    return 5;
            }
            await sending;
            try { await client.Send(1, new byte[65532]); return 6; }
            catch (ArgumentException) { }
            Console.WriteLine("all came back");
            try { return await client.Receive() == null ? 0 : 7; }
            catch (System.IO.EndOfStreamException) { Console.WriteLine("within a packet"); }
            catch (System.IO.InvalidDataException) { Console.WriteLine("no packet"); }
            return 0;
        }
    }
}
"""

JAVASCRIPT = """
import { PacketClient } from "./packet_client.mjs";

const [port, count] = process.argv.slice(2, 4).map(Number);

function payloadOf(number) {
  const payload = new Uint8Array(number === count - 1 ? 65531 : (number * 7919) % 3001);
  return payload.map((_, i) => number + i * 31);
}

const options = { useTls: process.argv.length > 4 };
const client = await PacketClient.connect("localhost", port, options).catch((error) => {
  console.log(error.code);
  process.exit(8);
});
for (let number = 0; number < count; number++) client.send(60000 + number, payloadOf(number));
let number = 0;
const told = () => {
  try { client.send(1, new Uint8Array(65532)); process.exit(6); }
  catch (error) { if (!(error instanceof RangeError)) throw error; }
  console.log("all came back");
};
if (!count) told();
try {
  for await (const { id, payload } of client) {
    if (id !== 60000 + number) process.exit(4);
    if (Buffer.compare(payload, payloadOf(number)) !== 0) process.exit(5);
    if (++number === count) told();
  }
} catch (error) {
  console.log(error.message.includes("within a packet") ? "within a packet" : "no packet");
}
client.send(1, new Uint8Array(3)); // is lost, and ends nothing
process.exit(number === count ? 0 : 3);
"""


def javascript(directory: Path, code: str) -> list[str]:
    """Return the command of a program in JavaScript, whose file is beside that of the client."""
    if NODE is None:
        pytest.skip("needs Node.js")
    shutil.copy(CLIENTS / "packet_client.mjs", directory)
    script = directory / "program.mjs"
    script.write_text(code)
    return [NODE, str(script)]


def csharp(directory: Path, code: str) -> list[str]:
    """Compile a program in C# with the client, without a warning, and return its command."""
    if MCS is None or MONO is None:
        pytest.skip("needs Mono and its compiler (apt-get install mono-mcs)")
    source, target = directory / "Program.cs", directory / "Program.exe"
    source.write_text(code)
    command = [MCS, "-warnaserror", f"-out:{target}", str(source), str(CLIENTS / "PacketClient.cs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [MONO, str(target)]


@pytest.fixture(scope="module", params=["C#", "JavaScript"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command of a program made with one of the clients; it takes PORT and COUNT."""
    directory = tmp_path_factory.mktemp("program")
    if request.param == "C#":
        return csharp(directory, CSHARP)
    return javascript(directory, JAVASCRIPT)


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program to the end of the block at the latest."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(180)
def test_packets_come_back_and_the_end_is_seen(program: list[str], tmp_path: Path):
    node = ClusterNode(tmp_path, ["--workers", "1"]).wait_ready()
    try:
        with running([*program, str(node.port), str(ROUND_TRIPS)]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "all came back\n"
            node.close()  # a drain ends the session in good order
            assert process.communicate(timeout=60)[0] == ""
            assert process.returncode == 0
    finally:
        node.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", ""),
        (b"\x05", "within a packet\n"),
        (b"\x05\x00\x01\x00", "within a packet\n"),
        (b"\x03\x00\x01\x00", "no packet\n"),
    ],
)
def test_what_is_no_packet_is_told(program: list[str], sent: bytes, told: str):
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(sent)

        server = Thread(target=serve)
        server.start()
        with running([*program, str(listener.getsockname()[1]), "0"]) as process:
            output = process.communicate(timeout=60)[0]
        server.join(10)
    assert (output, process.returncode) == ("all came back\n" + told, 0)


@contextmanager
def served_by_tls(certificate: Path) -> Iterator[int]:
    """Send every client's bytes back, over TLS, to two clients at most; gives the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)

        def serve() -> None:
            for _ in range(2):
                # A client that does not trust the certificate breaks off.
                with suppress(OSError), listener.accept()[0] as plain:
                    plain.settimeout(60)
                    with context.wrap_socket(plain, server_side=True) as connection:
                        while data := connection.recv(65_536):
                            connection.sendall(data)
                        connection.unwrap()

        server = Thread(target=serve)
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.close()
            server.join(60)


@pytest.mark.timeout(180)
@needs_openssl
def test_a_certificate_has_to_be_trusted(program: list[str], tmp_path: Path):
    certificate = self_signed(tmp_path)
    environment = {**os.environ, "HOME": str(tmp_path)}
    trusting = {**environment, "NODE_EXTRA_CA_CERTS": str(tmp_path / "certificate")}
    with served_by_tls(certificate) as port:
        command = [*program, str(port), "40", "tls"]
        refused = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert refused.returncode == 8
        assert refused.stdout.strip() in ("AuthenticationException", "DEPTH_ZERO_SELF_SIGNED_CERT")
        if program[0] == MONO:
            trust = ["cert-sync", "--user", str(tmp_path / "certificate")]
            subprocess.run(trust, env=environment, capture_output=True, timeout=60, check=True)
        with running(command, trusting) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "all came back\n"


BY_ADDRESS = """
using System;

static class Program
{
    static void Main(string[] args)
    {
        var connecting = PacketClient.Connect("::1", int.Parse(args[0]));
        Console.WriteLine(connecting.Wait(20000) ? "connected" : "it waits for ever");
        Environment.Exit(0);
    }
}
"""


def test_the_csharp_client_connects_by_ipv6(tmp_path: Path):
    command = csharp(tmp_path, BY_ADDRESS)
    try:
        listener = create_server(("::1", 0), family=AF_INET6)
    except OSError:
        pytest.skip("needs IPv6")
    with listener, running([*command, str(listener.getsockname()[1])]) as process:
        assert process.communicate(timeout=60)[0] == "connected\n"


CLOSING = """
import { PacketClient } from "./packet_client.mjs";

const client = await PacketClient.connect("localhost", Number(process.argv[2]));
client.send(1, Buffer.from("asked"));
client.close();
client.send(2, Buffer.from("too late"));
for await (const { payload } of client) console.log(payload.toString());
"""


def test_what_is_sent_behind_the_close_does_not_end_the_answers(tmp_path: Path):
    with (
        create_server(("127.0.0.1", 0)) as listener,
        running([*javascript(tmp_path, CLOSING), str(listener.getsockname()[1])]) as process,
    ):
        listener.settimeout(60)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            received = b""
            while data := connection.recv(65_536):
                received += data
            connection.sendall(received)
        assert process.communicate(timeout=60)[0] == "asked\n"
        assert process.returncode == 0


CSHARP_FRAME = """
using System;
using System.Threading.Tasks;

static class Program
{
    static void Main()
    {
        Run().Wait();
    }

    static async Task Run()
    {
        %s
    }
}
"""


def printed(language: str) -> str:
    """Return the block of code in this language from the page about clients."""
    page = (ROOT / "docs" / "clients.md").read_text("utf-8")
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("language", ["csharp", "js"])
def test_the_printed_programs_run(language: str, tmp_path: Path):
    node = ClusterNode(tmp_path, ["--workers", "1"]).wait_ready()
    try:
        code = printed(language)
        assert code.count("7777") == 1
        code = code.replace("7777", str(node.port))
        if language == "csharp":
            command, line = csharp(tmp_path, CSHARP_FRAME % code), "1: 15 bytes\n"
        else:
            command, line = javascript(tmp_path, code), "1 14\n"
        with running(command) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == line
    finally:
        node.close()
