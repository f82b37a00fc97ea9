"""Imports the messages of a file as fast as gRPC's own client allows, and concurrently validates on the same channel.

usage: grpcio.py ADDRESS TOKEN ROWS VALIDATE
ROWS has messages with length prefixes (4 bytes, big endian). VALIDATE is one message. Prints the number of responses
to the import and to the validations, and exits with an error if any call failed.
"""

import struct
import sys
import threading

import grpc


def main(address: str, token: str, rows: str, validate: str) -> None:
    with open(rows, "rb") as file:
        data = file.read()
    with open(validate, "rb") as file:
        request = file.read()

    def messages():
        at = 0
        while at < len(data):
            (length,) = struct.unpack_from(">I", data, at)
            yield data[at + 4 : at + 4 + length]
            at += 4 + length

    channel = grpc.insecure_channel(address)
    validations, failures, is_done = 0, [], threading.Event()

    def validate_concurrently():
        nonlocal validations
        call = channel.unary_unary("/keyvouch.v1.Validator/Validate")
        while not is_done.is_set():
            try:
                call(request, timeout=60)
                validations += 1
            except grpc.RpcError as error:
                failures.append(f"{error.code()} {error.details()}")

    validating = threading.Thread(target=validate_concurrently)
    validating.start()
    responses = 0
    try:
        importing = channel.stream_stream("/keyvouch.v1.KeyStore/ImportKeys")
        for _ in importing(messages(), metadata=[("authorization", f"Bearer {token}")]):
            responses += 1
    finally:
        is_done.set()
        validating.join()
    print(responses, validations)
    if failures:
        sys.exit("\n".join(failures[:10]))


main(*sys.argv[1:])
