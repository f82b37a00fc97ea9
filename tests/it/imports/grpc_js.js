// Imports the messages of a file as fast as grpc-js allows, and concurrently validates on the same channel.
//
// usage: node grpc_js.js ADDRESS TOKEN ROWS VALIDATE
// ROWS has messages with length prefixes (4 bytes, big endian). VALIDATE is one message. Prints the number of
// responses to the import and to the validations, and exits with an error if any call failed.
const { readFileSync } = require('fs');
const { once } = require('events');
const grpc = require('@grpc/grpc-js');

const [address, token, rows, validate] = process.argv.slice(2);
const identity = (bytes) => bytes;
const client = new grpc.Client(address, grpc.credentials.createInsecure());

async function main() {
  const request = readFileSync(validate);
  let [responses, validations, isDone] = [0, 0, false];
  const validateConcurrently = async () => {
    while (!isDone) {
      await new Promise((resolve, reject) => {
        const path = '/keyvouch.v1.Validator/Validate';
        client.makeUnaryRequest(path, identity, identity, request, (error) => (error ? reject(error) : resolve()));
      });
      validations += 1;
    }
  };
  const validating = validateConcurrently();
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${token}`);
  const call = client.makeBidiStreamRequest('/keyvouch.v1.KeyStore/ImportKeys', identity, identity, metadata);
  call.on('data', () => (responses += 1));
  const ended = new Promise((resolve, reject) => {
    call.on('end', resolve);
    call.on('error', reject);
  });
  ended.catch(() => {});
  const data = readFileSync(rows);
  for (let at = 0; at < data.length; ) {
    const length = data.readUInt32BE(at);
    if (!call.write(data.subarray(at + 4, at + 4 + length))) {
      await Promise.race([once(call, 'drain'), ended]);
    }
    at += 4 + length;
  }
  call.end();
  await ended;
  isDone = true;
  await validating;
  console.log(responses, validations);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
