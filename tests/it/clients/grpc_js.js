// Makes one call with compressed messages by grpc-js, and prints its outcome as JSON: `code`, `details`, and the
// `response` in hexadecimal digits.
//
// usage: node grpc_js.js ADDRESS METHOD REQUEST ALGORITHM [TOKEN]
// METHOD is `/package.Service/Method`, REQUEST a file with the message, and ALGORITHM a number of
// `grpc.compressionAlgorithms`.
const { readFileSync } = require('fs');
const grpc = require('@grpc/grpc-js');

const [address, method, file, algorithm, token] = process.argv.slice(2);
const identity = (bytes) => bytes;
const options = { 'grpc.default_compression_algorithm': Number(algorithm) };
const client = new grpc.Client(address, grpc.credentials.createInsecure(), options);
const metadata = new grpc.Metadata();
if (token) {
  metadata.set('authorization', `Bearer ${token}`);
}
client.makeUnaryRequest(method, identity, identity, readFileSync(file), metadata, (error, response) => {
  const { code, details } = error ?? { code: 0, details: '' };
  console.log(JSON.stringify({ code, details, response: response ? response.toString('hex') : '' }));
  client.close();
});
