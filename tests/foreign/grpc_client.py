"""Calls the Echo service by grpcio: a client that is not ours.

    grpc_client.py HOST:PORT CASE [ARGUMENT]

CASE is the name of a function below, or `all` for those that take no argument. Exits 0 if the case
went as it should, else 1 with what was wrong.
"""

import queue
import sys
import time
import traceback

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from stubs import echo, echo_grpc

SERVICE = echo.DESCRIPTOR.services_by_name["Echo"].full_name
PATIENCE = 20  # seconds after which a call that should have been answered is a failure
EVERY_BYTE = bytes(range(256))


def equal(got, wanted, what):
    assert got == wanted, f"{what} is {got!r}, not {wanted!r}"


def refused(call):
    """The error that `call`, a function, ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call was answered")


# --- the cases ---


def unary(channel):
    for method in [echo_grpc.EchoStub(channel).Call, echo_grpc.EchoStub(channel).Safe]:
        reply = method(echo.EchoRequest(message="grüß dich", payload=EVERY_BYTE), timeout=PATIENCE)
        equal(reply.message, "grüß dich", "the message")
        equal(reply.payload, EVERY_BYTE, "the payload")
    equal(echo_grpc.EchoStub(channel).Call(echo.EchoRequest(), timeout=PATIENCE).message, "", "an empty message")


def large(channel):
    payload = EVERY_BYTE * 4096  # 1 MiB: many frames, and more than the first flow-control window
    reply = echo_grpc.EchoStub(channel).Call(echo.EchoRequest(payload=payload), timeout=PATIENCE)
    assert reply.payload == payload, f"{len(reply.payload)} bytes came back that differ from those sent"


def server_stream(channel):
    stub = echo_grpc.EchoStub(channel)
    replies = stub.Download(echo.EchoRequest(message="again", repeat=100), timeout=PATIENCE)
    equal([(reply.count, reply.message) for reply in replies], [(n, "again") for n in range(1, 101)], "the stream")
    equal(list(stub.Download(echo.EchoRequest(repeat=0), timeout=PATIENCE)), [], "an empty stream")


def client_stream(channel):
    stub = echo_grpc.EchoStub(channel)
    requests = [echo.EchoRequest(message=str(n % 10), payload=EVERY_BYTE) for n in range(100)]
    reply = stub.Upload(iter(requests), timeout=PATIENCE)
    equal(reply.count, 100, "the count")
    equal(reply.message, "0123456789" * 10, "the messages")
    equal(reply.payload, EVERY_BYTE * 100, "the payloads")
    equal(stub.Upload(iter([]), timeout=PATIENCE).count, 0, "the count of no requests")


def bidi(channel):
    chat = Chat(channel)
    for n in range(1, 51):  # in step: a server that holds replies back never gets the next request
        reply = chat.say(f"line {n}")
        equal((reply.count, reply.message), (n, f"line {n}"), "the answer")
    equal(chat.close(), [], "what came after the end")


def deadline(channel):
    stub = echo_grpc.EchoStub(channel)
    reply = stub.Call(echo.EchoRequest(), timeout=5)
    # grpcio rounds a timeout up before it sends it.
    assert 0 < reply.remaining_ms < 5100, f"of 5 s the server saw {reply.remaining_ms} ms"
    started = time.monotonic()
    error = refused(lambda: stub.Call(echo.EchoRequest(delay_ms=60_000), timeout=0.3))
    equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "the code")
    took = time.monotonic() - started
    assert took < PATIENCE, f"a deadline of 0.3 s took {took:.1f} s"


def metadata(channel):
    sent = [
        ("x-echo-text", "one"),
        ("x-echo-text", "two"),
        ("x-echo-raw-bin", EVERY_BYTE),
        ("x-echo-raw-bin", b""),
        ("x-trail-text", "three"),
        ("x-trail-raw-bin", EVERY_BYTE),
    ]
    stub = echo_grpc.EchoStub(channel)
    _, call = stub.Call.with_call(echo.EchoRequest(), metadata=sent, timeout=PATIENCE)
    check_metadata(call, sent)
    call = stub.Download(echo.EchoRequest(repeat=3), metadata=sent, timeout=PATIENCE)
    equal(len(list(call)), 3, "the length of the stream")
    check_metadata(call, sent)


def check_metadata(call, sent):
    came = {"x-echo-": call.initial_metadata(), "x-trail-": call.trailing_metadata()}
    for prefix, pairs in came.items():
        back = sorted((key, value) for key, value in pairs if key.startswith(prefix))
        equal(back, sorted(pair for pair in sent if pair[0].startswith(prefix)), f"what came back of {prefix}*")


def cancel(channel):
    stub = echo_grpc.EchoStub(channel)
    call = stub.Call.future(echo.EchoRequest(delay_ms=60_000), timeout=PATIENCE)
    call.cancel()
    assert call.cancelled(), "a cancelled call was answered"

    download = stub.Download(echo.EchoRequest(repeat=1_000_000, payload=EVERY_BYTE), timeout=PATIENCE)
    equal(next(download).count, 1, "the first of the stream")
    download.cancel()
    equal(refused(lambda: list(download)).code(), grpc.StatusCode.CANCELLED, "the code of the stream")

    chat = Chat(channel)
    equal(chat.say("hello").message, "hello", "the answer")
    chat.call.cancel()
    equal(refused(lambda: list(chat.call)).code(), grpc.StatusCode.CANCELLED, "the code of the chat")
    unary(channel)  # the connection outlives it all


def error(channel):
    stub = echo_grpc.EchoStub(channel)
    message = "déjà vu: 100 %\t☂\n"
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            request = echo.EchoRequest(fail_code=code.value[0], fail_message=message)
            failure = refused(lambda: stub.Call(request, timeout=PATIENCE))
            equal((failure.code(), failure.details()), (code, message), "the status")

    download = stub.Download(echo.EchoRequest(repeat=2, fail_code=5, fail_message="no more"), timeout=PATIENCE)
    equal([next(download).count, next(download).count], [1, 2], "what came before the error")
    failure = refused(lambda: next(download))
    equal((failure.code(), failure.details()), (grpc.StatusCode.NOT_FOUND, "no more"), "the status at the end")

    for path in [f"/{SERVICE}/Nothing", "/chassis.test.v1.Nobody/Call"]:
        failure = refused(lambda: channel.unary_unary(path)(b"", timeout=PATIENCE))
        equal(failure.code(), grpc.StatusCode.UNIMPLEMENTED, f"the code of {path}")


def reflection(channel):
    """Makes a call with only the information of reflection."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services(), f"{SERVICE} is not among {database.get_services()}"
    methods = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name
    equal(sorted(methods), ["Call", "Chat", "Download", "Safe", "Upload"], "the methods")
    options = descriptor_pb2.MethodOptions.FromString(methods["Safe"].GetOptions().SerializeToString())
    equal(options.idempotency_level, descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS, "what Safe declares")

    request = message_factory.GetMessageClass(methods["Call"].input_type)
    reply = message_factory.GetMessageClass(methods["Call"].output_type)
    call = channel.unary_unary(f"/{SERVICE}/Call", request.SerializeToString, reply.FromString)
    equal(call(request(message="found you"), timeout=PATIENCE).message, "found you", "the message")


def health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ["", SERVICE]:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        equal(answer.status, serving, f"the health of {service!r}")
    failure = refused(lambda: stub.Check(health_pb2.HealthCheckRequest(service="unknown"), timeout=PATIENCE))
    equal(failure.code(), grpc.StatusCode.NOT_FOUND, "the code for an unknown service")
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE)
    equal(next(watch).status, serving, "the health watched")
    watch.cancel()


def refusal(channel, reason):
    """A Call that the server's pipeline turns away, for `reason`: said so that a machine can read it."""
    failure = refused(lambda: echo_grpc.EchoStub(channel).Call(echo.EchoRequest(), timeout=PATIENCE))
    status = rpc_status.from_call(failure)
    assert status is not None, f"a bare {failure.code()}: {failure.details()}"
    equal(status.code, failure.code().value[0], "the code in the details")
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details), f"no ErrorInfo in {status}"
    equal((info.domain, info.reason), ("chassis", reason), "who refused, and why")


# --- what they need ---


class Chat:
    """A Chat held open, one line after the other."""

    def __init__(self, channel):
        self.lines = queue.SimpleQueue()
        self.call = echo_grpc.EchoStub(channel).Chat(iter(self.lines.get, None), timeout=PATIENCE)

    def say(self, message):
        self.lines.put(echo.EchoRequest(message=message))
        return next(self.call)

    def close(self):
        self.lines.put(None)
        return list(self.call)


CASES = [unary, large, server_stream, client_stream, bidi, deadline, metadata, cancel, error, reflection, health]


def main(address, name, *arguments):
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]) as channel:
        for case in CASES if name == "all" else [globals()[name]]:
            try:
                case(channel, *arguments)
            except (AssertionError, grpc.RpcError):
                traceback.print_exc()
                sys.exit(f"{case.__name__} failed against {address}")
            print(f"{case.__name__}: as it should be", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
