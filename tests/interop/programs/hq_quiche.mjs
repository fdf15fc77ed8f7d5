// hq-interop with Cloudflare's quiche (the npm package @matrixai/quic), as server or client.
//
// node hq_quiche.mjs PACKAGE server|client HOST PORT [PATH...] --directory D [--option ...]
// The binding's native classes are used directly: they are quiche's own, sockets are ours.

import dgram from 'node:dgram';
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import url from 'node:url';

const [packageDirectory, role, host, portText, ...rest] = process.argv.slice(2);
const port = Number(portText);
const options = {};
const paths = [];
while (rest.length) {
  const word = rest.shift();
  if (['--directory', '--certificate', '--key', '--ca', '--keylog'].includes(word)) {
    options[word.slice(2)] = rest.shift();
  } else if (word.startsWith('--')) {
    options[word.slice(2)] = true;
  } else {
    paths.push(word);
  }
}

const native = path.join(packageDirectory, 'node_modules/@matrixai/quic/dist/native/quiche.js');
const { default: quiche } = await import(url.pathToFileURL(native));
const family = host.includes(':') ? 'udp6' : 'udp4';
const LARGEST = 65535;

function configure() {
  const read = (name) => (options[name] ? fs.readFileSync(options[name]) : undefined);
  const key = read('key');
  const certificate = read('certificate');
  const config = quiche.Config.withBoringSslCtx(
    role === 'client', false, read('ca'), key && [key], certificate && [certificate], undefined);
  config.setApplicationProtos(['hq-interop']);
  config.setMaxIdleTimeout(30000);
  config.setMaxRecvUdpPayloadSize(65527);
  config.setMaxSendUdpPayloadSize(1350);
  config.setInitialMaxData(16 << 20);
  config.setInitialMaxStreamDataBidiLocal(8 << 20);
  config.setInitialMaxStreamDataBidiRemote(8 << 20);
  config.setInitialMaxStreamDataUni(1 << 20);
  config.setInitialMaxStreamsBidi(100);
  config.setInitialMaxStreamsUni(10);
  config.setActiveConnectionIdLimit(16);
  config.enableEarlyData();
  return config;
}

function newSocket() {
  return new Promise((resolve) => {
    const socket = dgram.createSocket(family);
    socket.bind(role === 'server' ? port : 0, role === 'server' ? host : family === 'udp6' ? '::1' : '127.0.0.1',
      () => resolve(socket));
  });
}

// Sends what a connection has to send, and keeps its timer.
class Link {
  constructor(connection, socketFor) {
    this.connection = connection;
    this.socketFor = socketFor;
    this.buffer = new Uint8Array(LARGEST);
    this.timer = null;
    this.hasReceived = false;
    this.onEvent = () => {};
  }

  flush() {
    for (;;) {
      const sent = this.connection.send(this.buffer);
      if (sent == null) break;
      const [size, info] = sent;
      this.socketFor(info.from).send(Buffer.from(this.buffer.slice(0, size)), info.to.port, info.to.host);
    }
    clearTimeout(this.timer);
    const wait = this.connection.timeout();
    if (wait != null && !this.connection.isClosed()) {
      this.timer = setTimeout(() => {
        this.connection.onTimeout();
        this.onEvent();
        this.flush();
      }, Math.max(1, wait));
    }
  }

  receive(data, from, to) {
    try {
      this.connection.recv(new Uint8Array(data), { from, to });
      this.hasReceived = true;
    } catch (error) {
      console.error(`recv: ${error.message}`);
    }
    this.onEvent();
    this.flush();
    return this.hasReceived;
  }
}

const local = (socket) => ({ host: socket.address().address, port: socket.address().port });
const remote = (info) => ({ host: info.address, port: info.port });
const chunk = new Uint8Array(65536);

function drain(connection, streamId, take) {
  for (;;) {
    const got = connection.streamRecv(streamId, chunk);
    if (got == null) return;
    const [size, fin] = got;
    take(Buffer.from(chunk.slice(0, size)), fin);
    if (fin) return;
  }
}

async function serve() {
  const config = configure();
  const socket = await newSocket();
  const links = new Map();
  console.log(`listening on port ${port}`);
  socket.on('message', (data, info) => {
    let header;
    try {
      header = quiche.Header.fromSlice(new Uint8Array(data), 16);
    } catch {
      return;
    }
    const id = Buffer.from(header.dcid).toString('hex');
    let link = links.get(id);
    if (link == null) {
      if (header.ty === 5) return;
      const out = new Uint8Array(1500);
      const answer = (size) => socket.send(Buffer.from(out.slice(0, size)), info.port, info.address);
      if (!quiche.versionIsSupported(header.version)) {
        answer(quiche.negotiateVersion(header.scid, header.dcid, out));
        return;
      }
      if (header.ty !== 0) return;
      let scid = new Uint8Array(crypto.randomBytes(16));
      let original;
      if (options.retry) {
        if (!header.token || header.token.length === 0) {
          // A test's token: the address, and the connection ID which was dialled first.
          const token = Buffer.concat([Buffer.from('test'), Buffer.from(header.dcid)]);
          answer(quiche.retry(header.scid, header.dcid, scid, new Uint8Array(token), header.version, out));
          return;
        }
        original = new Uint8Array(header.token.slice(4));
        scid = new Uint8Array(header.dcid);
      }
      const connection = quiche.Connection.accept(scid, original, local(socket), remote(info), config);
      link = new Link(connection, () => socket);
      const requests = new Map();
      const answers = new Map();
      link.onEvent = () => {
        if (!connection.isEstablished() && !connection.isInEarlyData()) return;
        for (;;) {
          try {
            if (connection.sourceCidsLeft() === 0) break;
            const next = new Uint8Array(crypto.randomBytes(16));
            connection.newSourceCid(next, BigInt(`0x${crypto.randomBytes(16).toString('hex')}`), false);
            links.set(Buffer.from(next).toString('hex'), link);
          } catch {
            break;
          }
        }
        for (const streamId of connection.readable()) {
          drain(connection, streamId, (bytes, fin) => {
            requests.set(streamId, (requests.get(streamId) ?? '') + bytes.toString());
            if (fin) {
              const name = requests.get(streamId).trim().split(' ')[1].replaceAll('/', '');
              requests.delete(streamId);
              answers.set(streamId, fs.readFileSync(path.join(options.directory, name)));
            }
          });
        }
        for (const [streamId, body] of answers) {
          let size;
          try {
            size = connection.streamSend(streamId, new Uint8Array(body), true);
          } catch (error) {
            console.error(`send: ${error.message}`);
            answers.delete(streamId);
            continue;
          }
          if (size == null) continue;
          if (size === body.length) answers.delete(streamId);
          else answers.set(streamId, body.subarray(size));
        }
      };
      links.set(id, link);
      links.set(Buffer.from(scid).toString('hex'), link);
    }
    if (!link.receive(data, remote(info), local(socket))) {
      // quiche gives up a connection whose first packet is not authentic; the next may be.
      clearTimeout(link.timer);
      for (const [name, other] of links) if (other === link) links.delete(name);
    }
  });
}

async function exchange(names, session, number) {
  let socket = await newSocket();
  const sockets = [socket];
  const connection = quiche.Connection.connect(
    'localhost', new Uint8Array(crypto.randomBytes(16)), local(socket), { host, port }, configure());
  if (options.keylog) connection.setKeylog(options.keylog);
  if (session) connection.setSession(session);
  const link = new Link(connection, (from) => sockets.find((s) => s.address().port === from.port) ?? socket);
  const listen = (s) => s.on('message', (data, info) => link.receive(data, remote(info), local(s)));
  listen(socket);
  const bodies = new Map();
  const waiting = [...names];
  let streamId = 0;
  let moved = !options.migrate;
  let early = 0;
  const finished = new Promise((resolve) => {
    link.onEvent = () => {
      if (connection.isClosed()) {
        const error = connection.peerError() ?? connection.localError();
        const why = error ? `${error.errorCode} ${Buffer.from(error.reason)}` : 'no error';
        const open = [...bodies.keys()].map((id) => `${id} readable ${connection.streamReadable(id)} finished ${connection.streamFinished(id)}`);
        console.error(`closed: ${why}; timed out: ${connection.isTimedOut()}; streams: ${open}`);
        process.exit(1);
        return;
      }
      const ready = connection.isEstablished() || connection.isInEarlyData();
      if (!ready) return;
      while (waiting.length && connection.peerStreamsLeftBidi() > 0) {
        const request = new Uint8Array(Buffer.from(`GET ${waiting[0]}\r\n`));
        if (connection.streamSend(streamId, request, true) !== request.length) break;
        if (!connection.isEstablished()) early += 1;
        bodies.set(streamId, { name: waiting.shift().replaceAll('/', ''), parts: [] });
        streamId += 4;
      }
      const finish = (id) => {
        const body = bodies.get(id);
        fs.writeFileSync(path.join(options.directory, body.name), Buffer.concat(body.parts));
        bodies.delete(id);
      };
      for (const id of connection.readable()) {
        drain(connection, id, (bytes, fin) => {
          bodies.get(id).parts.push(bytes);
          if (fin) finish(id);
        });
      }
      // quiche makes a stream readable no more if its end comes with data that was read before.
      for (const id of [...bodies.keys()]) if (connection.streamFinished(id)) finish(id);
      if (connection.isEstablished()) {
        while (connection.sourceCidsLeft() > 0) {
          connection.newSourceCid(new Uint8Array(crypto.randomBytes(16)),
            BigInt(`0x${crypto.randomBytes(16).toString('hex')}`), false);
        }
      }
      if (!moved && connection.isEstablished() && connection.availableDcids() > 0) {
        moved = true;
        setTimeout(async () => {
          socket = await newSocket();
          sockets.push(socket);
          listen(socket);
          connection.migrateSource(local(socket));
          link.flush();
        }, 300);
      }
      if (!waiting.length && !bodies.size && moved) resolve();
    };
  });
  link.flush();
  link.onEvent();
  link.flush();
  await finished;
  link.onEvent = () => {};
  let ticket = connection.session();
  for (let i = 0; i < 50 && !ticket && number === 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    ticket = connection.session();
  }
  console.log(JSON.stringify({ resumed: connection.isResumed(), early_requests: early }));
  connection.close(true, 0, new Uint8Array());
  link.flush();
  clearTimeout(link.timer);
  await new Promise((resolve) => setTimeout(resolve, 20));
  for (const s of sockets) s.close();
  return ticket;
}

if (role === 'server') {
  await serve();
} else {
  let rounds = [paths];
  if (options.each) rounds = paths.map((name) => [name]);
  if (options.resume || options['early-data']) rounds = [paths.slice(0, 1), paths.slice(1)];
  let session;
  for (const [number, names] of rounds.entries()) {
    session = (await exchange(names, number && !options.each ? session : undefined, number)) ?? session;
  }
  process.exit(0);
}
