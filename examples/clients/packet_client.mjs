// A client of the server for Node.js, on TCP, without packages. In a browser it is a WebSocket
// instead: see ../chat/web/chat.js.
import { once } from "node:events";
import net from "node:net";
import tls from "node:tls";

const HEADER_BYTES = 4;
const PAYLOAD_BYTES_MAX = 0xffff - HEADER_BYTES;

export class PacketClient {
  // Resolves once connected, with TLS where that ends in front of the server. Rejects if nobody is
  // there, or for a certificate that is not trusted.
  static async connect(host, port, { useTls = false } = {}) {
    const socket = useTls ? tls.connect({ host, port, servername: host }) : net.connect({ host, port });
    socket.setNoDelay(true);
    const client = new PacketClient(socket);
    await once(socket, useTls ? "secureConnect" : "connect");
    return client;
  }

  constructor(socket) {
    this.socket = socket;
    // The iteration throws it. Without this it would end the process.
    socket.on("error", () => {});
  }

  // Queues one packet. False if much waits already: go on at the socket's "drain", or just go on. What
  // is sent once the connection has ended, or behind close(), is lost, as in a browser; the iteration
  // tells the end.
  send(id, payload) {
    if (payload.length > PAYLOAD_BYTES_MAX) {
      throw new RangeError(
        `a payload of ${payload.length} bytes; ${PAYLOAD_BYTES_MAX} fit into a packet`,
      );
    }
    const packet = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
    packet.writeUInt16LE(packet.length, 0);
    packet.writeUInt16LE(id, 2);
    packet.set(payload, HEADER_BYTES);
    // A write behind the end would destroy the socket, and with it the answers on the way.
    return !this.socket.writable || this.socket.write(packet);
  }

  // Gives `{ id, payload }` for each packet, until the server ends the session. Throws if the
  // connection breaks, or if what comes is no packet. Leaving the loop ends the connection.
  async *[Symbol.asyncIterator]() {
    let waiting = [];
    let waitingBytes = 0;
    let needed = HEADER_BYTES;
    for await (const chunk of this.socket) {
      waiting.push(chunk);
      waitingBytes += chunk.length;
      if (waitingBytes < needed) continue;
      const bytes = waiting.length === 1 ? chunk : Buffer.concat(waiting);
      let begin = 0;
      needed = HEADER_BYTES;
      while (bytes.length - begin >= needed) {
        const size = bytes.readUInt16LE(begin);
        if (size < HEADER_BYTES) throw new Error(`a packet of ${size} bytes, less than its header`);
        if (bytes.length - begin < size) {
          needed = size;
          break;
        }
        const payload = bytes.subarray(begin + HEADER_BYTES, begin + size);
        yield { id: bytes.readUInt16LE(begin + 2), payload };
        begin += size;
      }
      waiting = begin < bytes.length ? [bytes.subarray(begin)] : [];
      waitingBytes = bytes.length - begin;
    }
    if (waitingBytes) throw new Error("the connection ended within a packet");
  }

  // Ends the connection behind what was sent.
  close() {
    this.socket.end();
  }
}
