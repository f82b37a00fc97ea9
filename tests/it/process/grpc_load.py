"""Validates a key repeatedly with gRPC's own client, in round-robin order at several servers and with the standard
retry policy, until standard input ends. Prints the number of calls, and the error of each failed call."""

import json
import sys
import threading

import grpc

THREADS = 8
# gRFC A6. Transparent retries are built into the client.
CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "keyvouch.v1.Validator"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
# ValidateResponse.valid = true: the first field, a varint.
VALID = b"\x08\x01"


def main(addresses: str, secret: str) -> None:
    options = [("grpc.service_config", json.dumps(CONFIG)), ("grpc.max_reconnect_backoff_ms", 200)]
    # By default the authority would be the list of addresses, which is not a valid authority.
    options.append(("grpc.default_authority", "keyvouch"))
    options.append(("grpc.initial_reconnect_backoff_ms", 50))
    options.append(("grpc.min_reconnect_backoff_ms", 50))
    channel = grpc.insecure_channel(f"ipv4:{addresses}", options=options)
    validate = channel.unary_unary("/keyvouch.v1.Validator/Validate")
    # ValidateRequest.secret: the first field, a text.
    request = b"\x0a" + bytes([len(secret)]) + secret.encode()
    calls, failures, over = [0] * THREADS, [], threading.Event()

    def load(number: int) -> None:
        while not over.is_set():
            try:
                answer = validate(request, timeout=10)
            except grpc.RpcError as error:
                failures.append(f"{error.code()}: {error.details()}")
                return
            if not answer.startswith(VALID):
                failures.append(f"denied: {answer!r}")
                return
            calls[number] += 1

    threads = [threading.Thread(target=load, args=[number]) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"calls": sum(calls), "failures": failures}))


main(*sys.argv[1:])
