// What a session of the second client comes to, as one line of JSON.
import { Client } from "./client.js";

const bytes = (text) => new TextEncoder().encode(text);
const text = (data) => new TextDecoder().decode(data);
const gathered = async (records) => {
  const found = [];
  for await (const record of records) found.push(record);
  return found;
};

const client = await Client.connect(Number(process.argv[2]));
const many = await Promise.all(
  Array.from({ length: 1000 }, (_, i) => client.append(i % 2 ? "odd" : "even", [bytes(`${i}`)])),
);
const rich = { payload: bytes("rich"), key: bytes("k"), headers: [["h", bytes("v")]], eventTime: -5 };
const receipt = await client.append("rich", [bytes("plain"), rich], { expect: 0, producer: [bytes("me"), 0] });
const again = await client.append("rich", [bytes("plain"), rich], { expect: 0, producer: [bytes("me"), 0] });
const conflict = await client.append("rich", [bytes("x")], { expect: 7 }).catch((error) => error);
const several = await client.appendMany({ a: [bytes("1")], b: [bytes("2")] });
const tail = client.tail({ stream: "live", start: 0 });
const first = tail.next();
await client.append("live", [bytes("now")]);
const live = (await first).value;
await tail.return();
const all = await gathered(client.read());
const down = await gathered(client.read({ stream: "odd", reverse: true, limit: 3 }));
const got = await gathered(client.get([all[5].position, all[0].position]));
console.log(
  JSON.stringify({
    version: client.welcome.version,
    offsets: many.every(({ firstOffset }, i) => firstOffset === Math.floor(i / 2)),
    durable: many.every(({ durable }) => durable),
    same: text(receipt.mac) === text(again.mac) && receipt.lastOffset === 1,
    conflict: [conflict.code, conflict.expected, conflict.about],
    several: several.map(({ stream, firstOffset }) => [stream, firstOffset]),
    live: [live.stream, live.offset, text(live.payload)],
    all: all.length,
    rich: all.filter(({ stream }) => stream === "rich").map(({ payload, key, headers, eventTime }) => [
      text(payload), key && text(key), headers.map(([name, value]) => [name, text(value)]), eventTime && Number(eventTime),
    ]),
    down: down.map(({ offset, payload }) => [offset, text(payload)]),
    got: got.map(({ position }) => position === all[5].position || position === all[0].position),
    streams: (await client.streams()).map(([name, length]) => [name, Number(length)]),
    records: Number((await client.info()).records),
  }),
);
client.close();
