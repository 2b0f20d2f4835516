// Carries MQTT between QUIC (quiche, by @matrixai/quic) and TCP, byte for byte: brokers and clients that speak no QUIC
// become third-party peers of ours on a QUIC stack that is not aioquic.
//
//   node relay.mjs listen  HOST PORT CERTIFICATE PRIVATE_KEY    QUIC listener; every stream becomes a connection to the
//                                                               TCP broker at HOST:PORT
//   node relay.mjs connect HOST PORT CERTIFICATE_AUTHORITY      TCP listener; every connection becomes a QUIC connection
//                                                               to the broker at HOST:PORT, with one stream
//
// Prints the port it listens on (127.0.0.1), then one line for each QUIC connection and stream.

import { createHmac, timingSafeEqual, webcrypto } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { startStop } from '@matrixai/async-init';
import Logger, { LogLevel } from '@matrixai/logger';
import { QUICClient, QUICConnection, QUICServer, events } from '@matrixai/quic';

const LOOPBACK = '127.0.0.1';

const transport = {
  applicationProtos: ['mqtt'],
  maxIdleTimeout: 60_000,
  keepAliveIntervalTime: 20_000,
  readableChunkSize: 64 * 1024,
};

const logger = new Logger('relay', LogLevel.WARN);

// @matrixai/quic resets streams whose first bytes come along with the end of the handshake (0-RTT data sent again, for
// one), because it has not told anybody of the connection yet. They wait here until it has.
const { processStreams } = QUICConnection.prototype;
QUICConnection.prototype.processStreams = function () {
  if (this[startStop.status] !== 'starting') processStreams.call(this);
};

/** Carry both directions until both have ended; an end of one is passed on alone, an abort ends both. */
async function carry(stream, socket) {
  socket.setNoDelay(true);
  const directions = [
    pipeline(Readable.fromWeb(stream.readable), socket),
    pipeline(socket, Writable.fromWeb(stream.writable)),
  ];
  for (const { reason } of await Promise.allSettled(directions)) {
    if (reason !== undefined) console.log(`stream ${stream.streamId} broken: ${reason.message ?? reason}`);
  }
}

/** Wait until a TCP connection stands. */
function opened(socket) {
  return new Promise((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
}

/** What signs the tokens of Retry packets, with a key for this process only. */
function tokens() {
  const key = webcrypto.getRandomValues(new Uint8Array(32)).buffer;
  const sign = async (secret, data) => {
    const digest = createHmac('sha256', Buffer.from(secret)).update(Buffer.from(data)).digest();
    return digest.buffer.slice(digest.byteOffset, digest.byteOffset + digest.byteLength);
  };
  const verify = async (secret, data, signature) =>
    signature.byteLength === 32 && timingSafeEqual(Buffer.from(await sign(secret, data)), Buffer.from(signature));
  return { key, ops: { sign, verify } };
}

async function listen(host, port, certificate, privateKey) {
  const server = new QUICServer({
    crypto: tokens(),
    config: { ...transport, cert: readFileSync(certificate, 'utf8'), key: readFileSync(privateKey, 'utf8') },
    logger,
  });
  server.addEventListener(events.EventQUICServerConnection.name, ({ detail: connection }) => {
    console.log(`connection ${connection.remotePort}`);
    connection.addEventListener(events.EventQUICConnectionStream.name, async ({ detail: stream }) => {
      console.log(`stream ${stream.streamId}`);
      const socket = connect({ host, port, allowHalfOpen: true });
      try {
        await opened(socket);
      } catch (error) {
        console.log(`broker unreachable: ${error.message}`);
        stream.cancel(error);
        return;
      }
      await carry(stream, socket);
    });
    connection.processStreams();
  });
  await server.start({ host: LOOPBACK });
  console.log(server.port);
}

async function dial(host, port, authority) {
  const server = createServer({ allowHalfOpen: true }, async (socket) => {
    socket.on('error', () => {}); // carry() sees it too
    let client;
    try {
      client = await QUICClient.createQUICClient({
        host,
        port,
        localHost: LOOPBACK,
        serverName: 'localhost',
        crypto: { ops: { randomBytes: async (data) => void webcrypto.getRandomValues(new Uint8Array(data)) } },
        config: { ...transport, ca: readFileSync(authority, 'utf8') },
        logger,
      });
    } catch (error) {
      console.log(`broker unreachable: ${error.message}`);
      socket.destroy();
      return;
    }
    console.log(`connection ${client.localPort}`);
    const stream = client.connection.newStream();
    console.log(`stream ${stream.streamId}`);
    await carry(stream, socket);
    await client.destroy();
  });
  server.listen(0, LOOPBACK, () => console.log(server.address().port));
}

const [mode, host, port, ...files] = process.argv.slice(2);
const modes = { listen, connect: dial };
if (!(mode in modes)) {
  console.error('usage: relay.mjs listen HOST PORT CERTIFICATE PRIVATE_KEY | connect HOST PORT CERTIFICATE_AUTHORITY');
  process.exit(2);
}
await modes[mode](host, Number(port), ...files);
