// gRPC's interop test service on @grpc/grpc-js: `interop.js SCHEMA server [CERTIFICATE KEY]` prints its port and serves on loopback;
// `interop.js SCHEMA client HOST:PORT [--ca FILE --name NAME] CASE…` runs cases and prints a line of JSON for each.
// What a case does is written in gRPC's interop test descriptions; the schema is a FileDescriptorSet.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const { loadFileDescriptorSetFromBuffer } = require("@grpc/proto-loader");

const [schema, role, ...rest] = process.argv.slice(2);
const { testing } = grpc.loadPackageDefinition(
  loadFileDescriptorSetFromBuffer(fs.readFileSync(schema), { keepCase: true, defaults: true }),
).grpc;

const INITIAL = "x-grpc-test-echo-initial";
const TRAILING = "x-grpc-test-echo-trailing-bin";
const REQUESTS = [27182, 8, 1828, 45904];
const RESPONSES = [31415, 9, 2653, 58979];
const PATIENCE_MS = 20_000;
const GZIP = { "grpc.default_compression_algorithm": 2 };
const OPTIONS = { "grpc.enable_http_proxy": 0, "grpc.max_receive_message_length": 16 * 1024 * 1024 };

const payload = (size) => ({ body: Buffer.alloc(size) });

/** What comes on a stream, whose other direction stays open when it is over. */
const messages = (call) => call.iterator({ destroyOnReturn: false });

// -- server -----------------------------------------------------------------------------------------

function echoMetadata(call) {
  const head = new grpc.Metadata();
  const tail = new grpc.Metadata();
  for (const value of call.metadata.get(INITIAL)) head.set(INITIAL, value);
  for (const value of call.metadata.get(TRAILING)) tail.set(TRAILING, value);
  if (call.metadata.get(INITIAL).length) call.sendMetadata(head);
  return tail;
}

const wanted = (request) =>
  request.response_status && request.response_status.code
    ? { code: request.response_status.code, details: request.response_status.message }
    : null;

async function answer(call, request) {
  for (const each of request.response_parameters) {
    if (each.interval_us) await new Promise((done) => setTimeout(done, each.interval_us / 1000));
    if (!call.write({ payload: payload(each.size) })) await new Promise((done) => call.once("drain", done));
  }
}

async function fullDuplex(call) {
  const tail = echoMetadata(call);
  for await (const request of messages(call)) {
    const status = wanted(request);
    if (status) return call.emit("error", { ...status, metadata: tail });
    await answer(call, request);
  }
  call.end(tail);
}

const SERVICE = {
  EmptyCall: (call, done) => done(null, {}),
  UnaryCall: (call, done) => {
    const tail = echoMetadata(call);
    const status = wanted(call.request);
    if (status) done({ ...status, metadata: tail });
    else done(null, { payload: payload(call.request.response_size) }, tail);
  },
  StreamingOutputCall: async (call) => {
    await answer(call, call.request);
    call.end();
  },
  StreamingInputCall: (call, done) => {
    let sum = 0;
    call.on("data", (request) => (sum += request.payload.body.length));
    call.on("end", () => done(null, { aggregated_payload_size: sum }));
    call.on("error", () => {}); // the client cancelled
  },
  FullDuplexCall: (call) => void fullDuplex(call).catch(() => call.end()),
};

function serve([certificate, key]) {
  const server = new grpc.Server({ ...OPTIONS, ...GZIP });
  server.addService(testing.TestService.service, SERVICE);
  const credentials = certificate
    ? grpc.ServerCredentials.createSsl(null, [
        { cert_chain: fs.readFileSync(certificate), private_key: fs.readFileSync(key) },
      ])
    : grpc.ServerCredentials.createInsecure();
  server.bindAsync("127.0.0.1:0", credentials, (error, port) => {
    if (error) throw error;
    console.log(`port ${port}`);
  });
}

// -- client -----------------------------------------------------------------------------------------

const deadline = (ms = PATIENCE_MS) => ({ deadline: new Date(Date.now() + ms) });

/** A unary call: the response, with the metadata before and behind it. Rejects with the status. */
function unary(client, method, request, { metadata = new grpc.Metadata(), options = deadline() } = {}) {
  return new Promise((resolve, reject) => {
    let head;
    let response;
    const call = client[method](request, metadata, options, (error, value) => {
      if (error) reject(error);
      response = value;
    });
    call.on("metadata", (each) => (head = each));
    call.on("status", (status) => resolve({ response, head, tail: status.metadata }));
  });
}

/** What a call that must fail ends with. */
async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { code: error.code, details: error.details };
  }
  throw new assert.AssertionError({ message: "the call did not fail" });
}

/** Message after message of a stream of responses. */
class Reader {
  constructor(call) {
    this.call = call;
    this.head = new Promise((done) => call.once("metadata", done));
    this.status = new Promise((done) => call.once("status", done));
    this.messages = messages(call);
    call.on("error", () => {}); // its status says it
  }
  async next() {
    const { value, done } = await this.messages.next();
    return done ? null : value;
  }
  async failure() {
    await assert.rejects(async () => assert.equal(await this.next(), null, "one more message"));
    const { code, details } = await this.status;
    return { code, details };
  }
}

async function checkMetadata(head, tail) {
  assert.deepEqual(head.get(INITIAL), ["test_initial_metadata_value"]);
  assert.deepEqual(tail.get(TRAILING), [Buffer.from("ababab", "hex")]);
}

async function pingPong(client, sizes) {
  const call = client.FullDuplexCall(new grpc.Metadata(), deadline());
  const reader = new Reader(call);
  for (const [size, back] of sizes) {
    call.write({ response_parameters: [{ size: back }], payload: payload(size) });
    assert.equal((await reader.next()).payload.body.length, back);
  }
  call.end();
  assert.equal(await reader.next(), null);
  assert.equal((await reader.status).code, 0);
}

async function streamingOutput(client) {
  const reader = new Reader(
    client.StreamingOutputCall({ response_parameters: RESPONSES.map((size) => ({ size })) }, deadline()),
  );
  const sizes = [];
  for (let each = await reader.next(); each; each = await reader.next()) sizes.push(each.payload.body.length);
  assert.deepEqual(sizes, RESPONSES);
}

async function streamingInput(client) {
  const sum = await new Promise((resolve, reject) => {
    const call = client.StreamingInputCall(deadline(), (error, value) => (error ? reject(error) : resolve(value)));
    for (const size of REQUESTS) call.write({ payload: payload(size) });
    call.end();
  });
  assert.equal(sum.aggregated_payload_size, 74922);
}

async function largeUnary(client) {
  const { response } = await unary(client, "UnaryCall", { response_size: 314159, payload: payload(271828) });
  assert.equal(response.payload.body.length, 314159);
}

const CASES = {
  empty_unary: async (client) => assert.deepEqual((await unary(client, "EmptyCall", {})).response, {}),
  large_unary: largeUnary,
  client_streaming: streamingInput,
  server_streaming: streamingOutput,
  ping_pong: (client) => pingPong(client, REQUESTS.map((size, at) => [size, RESPONSES[at]])),
  empty_stream: (client) => pingPong(client, []),
  timeout_on_sleeping_server: async (client) => {
    const call = client.FullDuplexCall(deadline(1));
    const reader = new Reader(call);
    call.write({ response_parameters: [{ size: 1, interval_us: 1e7 }], payload: payload(27182) });
    assert.equal((await reader.failure()).code, grpc.status.DEADLINE_EXCEEDED);
  },
  cancel_after_begin: async (client) => {
    const failed = failure(
      new Promise((resolve, reject) => {
        const call = client.StreamingInputCall(deadline(), (error, value) => (error ? reject(error) : resolve(value)));
        setImmediate(() => call.cancel());
      }),
    );
    assert.equal((await failed).code, grpc.status.CANCELLED);
  },
  cancel_after_first_response: async (client) => {
    const call = client.FullDuplexCall(deadline());
    const reader = new Reader(call);
    call.write({ response_parameters: [{ size: 31415 }], payload: payload(27182) });
    assert.equal((await reader.next()).payload.body.length, 31415);
    call.cancel();
    assert.equal((await reader.failure()).code, grpc.status.CANCELLED);
  },
  status_code_and_message: async (client) => {
    const status = { code: 2, message: "test status message" };
    const said = { code: 2, details: status.message };
    assert.deepEqual(await failure(unary(client, "UnaryCall", { response_status: status })), said);
    const call = client.FullDuplexCall(deadline());
    const reader = new Reader(call);
    call.write({ response_status: status });
    call.end();
    assert.deepEqual(await reader.failure(), said);
  },
  special_status_message: async (client) => {
    const message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    const failed = failure(unary(client, "UnaryCall", { response_status: { code: 2, message } }));
    assert.deepEqual(await failed, { code: 2, details: message });
  },
  custom_metadata: async (client) => {
    const metadata = new grpc.Metadata();
    metadata.set(INITIAL, "test_initial_metadata_value");
    metadata.set(TRAILING, Buffer.from("ababab", "hex"));
    const one = await unary(client, "UnaryCall", { response_size: 1, payload: payload(1) }, { metadata });
    await checkMetadata(one.head, one.tail);
    const call = client.FullDuplexCall(metadata, deadline());
    const reader = new Reader(call);
    call.write({ response_parameters: [{ size: 1 }], payload: payload(1) });
    assert.equal((await reader.next()).payload.body.length, 1);
    call.end();
    assert.equal(await reader.next(), null);
    await checkMetadata(await reader.head, (await reader.status).metadata);
  },
  unimplemented_method: async (client) =>
    assert.equal((await failure(unary(client, "UnimplementedCall", {}))).code, grpc.status.UNIMPLEMENTED),
  unimplemented_service: async (_, open) =>
    assert.equal(
      (await failure(unary(open(testing.UnimplementedService), "UnimplementedCall", {}))).code,
      grpc.status.UNIMPLEMENTED,
    ),
  compressed_unary: (_, open) => largeUnary(open(testing.TestService, GZIP)),
  compressed_streaming: async (_, open) => {
    const client = open(testing.TestService, GZIP);
    await streamingInput(client);
    await streamingOutput(client);
  },
};

async function run([target, ...words]) {
  const isSecure = words[0] === "--ca";
  const credentials = isSecure
    ? grpc.credentials.createSsl(fs.readFileSync(words[1]))
    : grpc.credentials.createInsecure();
  const override = isSecure ? { "grpc.ssl_target_name_override": words[3] } : {};
  const clients = [];
  const open = (service, options = {}) => {
    clients.push(new service(target, credentials, { ...OPTIONS, ...override, ...options }));
    return clients[clients.length - 1];
  };
  const client = open(testing.TestService);
  for (const name of isSecure ? words.slice(4) : words) {
    let fault = "";
    try {
      await CASES[name](client, open);
    } catch (error) {
      fault = String(error.stack ?? error);
    }
    console.log(JSON.stringify({ case: name, fault }));
  }
  for (const each of clients) each.close();
}

if (role === "server") serve(rest);
else void run(rest);
