using System;
using System.IO;
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Threading;
using System.Threading.Tasks;

/// <summary>What one packet carries.</summary>
public sealed class Packet
{
    public readonly ushort Id;
    public readonly byte[] Payload;

    public Packet(ushort id, byte[] payload)
    {
        Id = id;
        Payload = payload;
    }
}

/// <summary>A client of the server for .NET and Unity, on TCP, in C# 7 without packages.</summary>
/// <remarks>
/// Any number of tasks may send; one at a time may receive. What awaits in Unity's main thread goes
/// on there, so handlers may touch the scene.
/// </remarks>
public sealed class PacketClient : IDisposable
{
    public const int PayloadBytesMax = ushort.MaxValue - HeaderBytes;
    private const int HeaderBytes = 4;

    private readonly TcpClient connection;
    private readonly Stream stream;
    private readonly SemaphoreSlim sending = new SemaphoreSlim(1, 1);

    // Room for a whole packet and for what comes with it; received[begin..end] is not parsed yet.
    private readonly byte[] received = new byte[2 * (ushort.MaxValue + 1)];
    private int begin, end;

    private PacketClient(TcpClient connection, Stream stream)
    {
        this.connection = connection;
        this.stream = stream;
    }

    /// <summary>Connect, with TLS where that ends in front of the server.</summary>
    /// <exception cref="SocketException">Nobody listens there.</exception>
    /// <exception cref="System.Security.Authentication.AuthenticationException">
    /// The certificate is not one of this host that the system trusts.</exception>
    public static async Task<PacketClient> Connect(string host, int port, bool useTls = false)
    {
        var connection = await Open(host, port).ConfigureAwait(false);
        try
        {
            if (!useTls)
                return new PacketClient(connection, connection.GetStream());
            var secured = new SslStream(connection.GetStream());
            await secured.AuthenticateAsClientAsync(host).ConfigureAwait(false);
            return new PacketClient(connection, secured);
        }
        catch
        {
            connection.Dispose();
            throw;
        }
    }

    // A TcpClient that is given a name connects by IPv4 only in Unity, and some networks have none.
    private static async Task<TcpClient> Open(string host, int port)
    {
        var addresses = await Dns.GetHostAddressesAsync(host).ConfigureAwait(false);
        for (int next = 0; ; next++)
        {
            var connection = new TcpClient(addresses[next].AddressFamily) { NoDelay = true };
            try
            {
                await connection.ConnectAsync(addresses[next], port).ConfigureAwait(false);
                return connection;
            }
            catch (SocketException) when (next + 1 < addresses.Length)
            {
                connection.Dispose();
            }
            catch
            {
                connection.Dispose();
                throw;
            }
        }
    }

    /// <summary>Send one packet.</summary>
    /// <exception cref="IOException">The connection has ended.</exception>
    /// <exception cref="ObjectDisposedException">It was ended here, by Dispose.</exception>
    public async Task Send(ushort id, byte[] payload)
    {
        if (payload.Length > PayloadBytesMax)
            throw new ArgumentException(
                $"a payload of {payload.Length} bytes; {PayloadBytesMax} fit into a packet");
        var packet = new byte[HeaderBytes + payload.Length];
        PutUInt16(packet, 0, packet.Length);
        PutUInt16(packet, 2, id);
        Buffer.BlockCopy(payload, 0, packet, HeaderBytes, payload.Length);
        await sending.WaitAsync().ConfigureAwait(false);
        try
        {
            await stream.WriteAsync(packet, 0, packet.Length).ConfigureAwait(false);
        }
        finally
        {
            sending.Release();
        }
    }

    /// <summary>Wait for the next packet; null once the server has ended the session.</summary>
    /// <exception cref="IOException">The connection broke.</exception>
    /// <exception cref="InvalidDataException">What came is no packet.</exception>
    public async Task<Packet> Receive()
    {
        if (!await Fill(HeaderBytes).ConfigureAwait(false))
            return null;
        int size = GetUInt16(received, begin);
        if (size < HeaderBytes)
            throw new InvalidDataException($"a packet of {size} bytes, less than its header");
        if (!await Fill(size).ConfigureAwait(false))
            return null;
        var payload = new byte[size - HeaderBytes];
        Buffer.BlockCopy(received, begin + HeaderBytes, payload, 0, payload.Length);
        var packet = new Packet((ushort)GetUInt16(received, begin + 2), payload);
        begin += size;
        return packet;
    }

    /// <summary>End the connection.</summary>
    public void Dispose()
    {
        connection.Dispose();
    }

    // Read until `count` bytes are there; false if the server ends between two packets before.
    private async Task<bool> Fill(int count)
    {
        while (end - begin < count)
        {
            if (begin > received.Length - (ushort.MaxValue + 1))
            {
                Buffer.BlockCopy(received, begin, received, 0, end - begin);
                end -= begin;
                begin = 0;
            }
            int read = await stream.ReadAsync(received, end, received.Length - end)
                .ConfigureAwait(false);
            if (read == 0 && begin == end)
                return false;
            if (read == 0)
                throw new EndOfStreamException("the connection ended within a packet");
            end += read;
        }
        return true;
    }

    private static int GetUInt16(byte[] bytes, int at)
    {
        return bytes[at] | bytes[at + 1] << 8;
    }

    private static void PutUInt16(byte[] bytes, int at, int value)
    {
        bytes[at] = (byte)value;
        bytes[at + 1] = (byte)(value >> 8);
    }
}
