"""Imports the messages of a file as fast as gRPC's own client lets it, and validates beside it on the same channel.

usage: grpcio.py ADDRESS TOKEN ROWS VALIDATE
ROWS has messages behind their lengths (4 bytes, big endian); VALIDATE is one. Prints the number of answers of the import and
that of the validations, and ends with an error if any call failed.
"""

import struct
import sys
import threading

import grpc


def main(address: str, token: str, rows: str, validate: str) -> None:
    with open(rows, "rb") as file:
        data = file.read()
    with open(validate, "rb") as file:
        ask = file.read()

    def messages():
        at = 0
        while at < len(data):
            (length,) = struct.unpack_from(">I", data, at)
            yield data[at + 4 : at + 4 + length]
            at += 4 + length

    channel = grpc.insecure_channel(address)
    validations, failures, is_over = 0, [], threading.Event()

    def validate_beside():
        nonlocal validations
        call = channel.unary_unary("/keyvouch.v1.Validator/Validate")
        while not is_over.is_set():
            try:
                call(ask, timeout=60)
                validations += 1
            except grpc.RpcError as error:
                failures.append(f"{error.code()} {error.details()}")

    beside = threading.Thread(target=validate_beside)
    beside.start()
    answers = 0
    try:
        importing = channel.stream_stream("/keyvouch.v1.KeyStore/ImportKeys")
        for _ in importing(messages(), metadata=[("authorization", f"Bearer {token}")]):
            answers += 1
    finally:
        is_over.set()
        beside.join()
    print(answers, validations)
    if failures:
        sys.exit("\n".join(failures[:10]))


main(*sys.argv[1:])
