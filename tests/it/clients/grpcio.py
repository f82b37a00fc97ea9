"""Makes one call with gRPC's own client, and prints its outcome as JSON.

usage: grpcio.py TARGET METHOD REQUEST [--compression gzip|deflate] [--authority NAME] [--metadata NAME=VALUE]…
       grpcio.py TARGET --watch REQUEST
METHOD is `/package.Service/Method`, and REQUEST a file with the message. The outcome has `code`, `details` and the
`response` in hexadecimal digits. With `--watch`, the call is Health/Watch: the outcome has the first response, and
whether the stream is open after a later call of the same channel was answered.
"""

import argparse
import json

import grpc

COMPRESSION = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate, "": grpc.Compression.NoCompression}


def unary(channel, method, request, compression, metadata):
    try:
        call = channel.unary_unary(method)
        response = call(request, timeout=60, compression=COMPRESSION[compression], metadata=metadata)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details(), "response": ""}
    return {"code": "OK", "details": "", "response": response.hex()}


def watch(channel, request):
    stream = channel.unary_stream("/grpc.health.v1.Health/Watch")(request)
    first = next(stream)
    later = unary(channel, "/grpc.health.v1.Health/Check", request, "", [])
    outcome = {"response": first.hex(), "is_open": stream.is_active(), "later": later["code"]}
    stream.cancel()
    return outcome


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("method", nargs="?")
    parser.add_argument("request")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--compression", default="")
    parser.add_argument("--authority")
    parser.add_argument("--metadata", action="append", default=[])
    arguments = parser.parse_args()
    with open(arguments.request, "rb") as file:
        request = file.read()
    options = [("grpc.default_authority", arguments.authority)] if arguments.authority else []
    channel = grpc.insecure_channel(arguments.target, options=options)
    metadata = [tuple(pair.split("=", 1)) for pair in arguments.metadata]
    if arguments.watch:
        outcome = watch(channel, request)
    else:
        outcome = unary(channel, arguments.method, request, arguments.compression, metadata)
    print(json.dumps(outcome))


main()
