"use strict";

// Packet ids, as in protocol.py.
const LOGIN = 1, JOIN = 2, SAY = 4, NOTICE = 10, LINE = 11;

// Every packet: its size with these four bytes, and its id, both little-endian; then the payload.
const HEADER_BYTES = 4;

const byId = (id) => document.getElementById(id);
const address = new URLSearchParams(location.search).get("server");
const socket = new WebSocket(address ?? `ws://${location.hostname}:8080/`);
socket.binaryType = "arraybuffer";

function send(id, message) {
  const payload = new TextEncoder().encode(JSON.stringify(message));
  const packet = new Uint8Array(HEADER_BYTES + payload.length);
  const header = new DataView(packet.buffer);
  header.setUint16(0, packet.length, true);
  header.setUint16(2, id, true);
  packet.set(payload, HEADER_BYTES);
  socket.send(packet);
}

// A message of the server has one or more whole packets.
function* packetsOf(message) {
  const view = new DataView(message);
  for (let start = 0; start < message.byteLength; start += view.getUint16(start, true)) {
    const end = start + view.getUint16(start, true);
    const payload = new Uint8Array(message, start + HEADER_BYTES, end - start - HEADER_BYTES);
    yield [view.getUint16(start + 2, true), JSON.parse(new TextDecoder().decode(payload))];
  }
}

function show(text, kind) {
  const line = document.createElement("div");
  line.textContent = text;
  line.className = kind;
  byId("lines").append(line);
  line.scrollIntoView();
}

socket.onmessage = (event) => {
  for (const [id, message] of packetsOf(event.data)) {
    if (id === NOTICE) {
      show(`* ${message.text}`, "server");
    } else if (id === LINE) {
      const who = message.who ? `<${message.who}>` : "*";
      show(`[${message.room}] ${who} ${message.text}`, message.who ? "person" : "server");
    }
  }
};

socket.onclose = (event) => {
  show(`* the connection has ended (${event.code}${event.reason && `, ${event.reason}`})`, "server");
};

byId("login").onsubmit = (event) => {
  event.preventDefault();
  send(LOGIN, { name: byId("name").value });
  send(JOIN, { room: byId("room").value });
};

byId("say").onsubmit = (event) => {
  event.preventDefault();
  send(SAY, { room: byId("room").value, text: byId("text").value });
  byId("text").value = "";
};
