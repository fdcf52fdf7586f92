// A client written from docs/protocol.md alone.
import net from "node:net";
import { decode, encode } from "@msgpack/msgpack";

const KIND = { hello: 1, append: 2, appendMany: 3, read: 4, get: 5, tail: 6, credit: 7, stop: 8, streams: 9, info: 10 };
const [WELCOME, RECEIPTS, RECORDS, END, RESULT, ERROR, PART] = [65, 66, 67, 68, 69, 70, 71];
const NOBODY = 0xffffffff;
const CREDIT = 1 << 20;
const options = { useBigInt64: true };

export class KimberliteError extends Error {
  constructor({ code, message, ...more }) {
    super(message);
    Object.assign(this, more, { code });
  }
}

// What comes of one request, in its order.
class Incoming {
  constructor() {
    [this.messages, this.wake] = [[], null];
  }
  push(message) {
    this.messages.push(message);
    this.wake?.();
  }
  async next() {
    while (!this.messages.length) await new Promise((resolve) => (this.wake = resolve));
    const [kind, body, length] = this.messages.shift();
    if (kind === ERROR) throw new KimberliteError(body);
    return [kind, body, length];
  }
}

export class Client {
  static async connect(port, host = "127.0.0.1") {
    const client = new Client();
    client.socket = net.connect(port, host).setNoDelay(true);
    client.socket.on("data", (data) => client.#arrived(data));
    client.socket.on("close", () => client.#lost("the server closed the connection"));
    client.socket.on("error", (error) => client.#lost(error.message));
    client.open.set(0, new Incoming());
    client.#send(KIND.hello, 0, { version: 1 });
    [, client.welcome] = await client.open.get(0).next();
    client.open.delete(0);
    return client;
  }

  constructor() {
    [this.open, this.arrived, this.id] = [new Map(), Buffer.alloc(0), 0];
  }

  // Records are Uint8Arrays, or { payload, key, headers: [[name, value], …], eventTime }.
  async append(stream, records, { expect = null, producer = null, sync = null } = {}) {
    const [receipt] = await this.#ask(KIND.append, [stream, records.map(packed), expect, producer, sync], [stream]);
    return receipt;
  }

  async appendMany(batches, { expect = {}, producer = null, sync = null } = {}) {
    const parts = Object.entries(batches).map(([name, records]) => [name, records.map(packed), expect[name] ?? null]);
    return this.#ask(KIND.appendMany, [parts, producer, sync], Object.keys(batches));
  }

  read(what = {}) {
    return this.#records(KIND.read, { ...what, credit: CREDIT }, what.reverse ? -1 : 1);
  }

  get(positions) {
    return this.#records(KIND.get, { positions }, 1);
  }

  tail(what = {}) {
    return this.#records(KIND.tail, { ...what, credit: CREDIT }, 1);
  }

  streams = () => this.#ask(KIND.streams, { start: 0 });
  info = () => this.#ask(KIND.info, null);

  close() {
    this.socket.end();
  }

  async #ask(kind, body, streams = null) {
    const [id, incoming] = this.#begin(kind, body);
    try {
      const parts = {};
      let [replied, answer] = await incoming.next();
      for (; replied === PART; [replied, answer] = await incoming.next())
        parts[answer[0]] = [...(parts[answer[0]] ?? []), ...answer[1]];
      for (const name in parts) answer[name] = [...parts[name], ...answer[name]];
      if (replied !== RECEIPTS) return answer;
      const { ending, places } = answer;
      return places.map(([firstOffset, lastOffset, firstPosition, lastPosition, mac], i) => ({
        stream: streams[i], firstOffset, lastOffset, firstPosition, lastPosition, mac, ...ending,
      }));
    } finally {
      this.open.delete(id);
    }
  }

  async *#records(kind, body, step) {
    const [id, incoming] = this.#begin(kind, body);
    try {
      for (;;) {
        const [replied, runs, length] = await incoming.next();
        if (replied === END) return;
        if (replied !== RECORDS) continue;
        if (kind !== KIND.get) this.#send(KIND.credit, id, length);
        for (const [stream, offset, position, timestamp, records] of runs)
          for (const [i, record] of records.entries()) {
            const [payload, key, headers, eventTime] = Array.isArray(record) ? record : [record, null, [], null];
            const place = { offset: Number(offset) + step * i, position: Number(position) + step * i };
            yield { stream, ...place, timestamp, payload, key, headers, eventTime };
          }
      }
    } finally {
      if (this.open.delete(id) && kind !== KIND.get) this.#send(KIND.stop, id, null);
    }
  }

  #begin(kind, body) {
    const [id, incoming] = [(this.id = (this.id + 1) % NOBODY), new Incoming()];
    this.open.set(id, incoming);
    this.#send(kind, id, body);
    return [id, incoming];
  }

  #send(kind, id, value) {
    const [head, body] = [Buffer.alloc(12), encode(value)];
    [body.length, kind, id].forEach((number, i) => head.writeUInt32LE(number, 4 * i));
    if (!this.socket.destroyed) this.socket.write(Buffer.concat([head, body]));
  }

  #arrived(data) {
    this.arrived = Buffer.concat([this.arrived, data]);
    while (this.arrived.length >= 12) {
      const [length, kind, id] = [0, 4, 8].map((at) => this.arrived.readUInt32LE(at));
      if (this.arrived.length < 12 + length) return;
      const body = decode(this.arrived.subarray(12, 12 + length), options);
      this.arrived = this.arrived.subarray(12 + length);
      if (kind === RECEIPTS) {
        const [timestamp, durable, treeSize, root, chain, incarnation, group, answers] = body;
        const ending = { timestamp, durable, treeSize, root, chain, incarnation, group };
        for (const [asked, places] of answers) this.open.get(asked)?.push([kind, { ending, places }]);
      } else if (id === NOBODY) this.#lost(body.message, body.code);
      else this.open.get(id)?.push([kind, body, 12 + length]);
    }
  }

  #lost(message, code = "UNAVAILABLE") {
    for (const incoming of this.open.values()) incoming.push([ERROR, { code, message }]);
  }
}

function packed(record) {
  if (record instanceof Uint8Array) return record;
  return [record.payload, record.key ?? null, record.headers ?? [], record.eventTime ?? null];
}
