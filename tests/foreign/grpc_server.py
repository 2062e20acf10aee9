"""The Echo service by grpcio, with health and reflection: a server that is not ours.

    grpc_server.py [NAME]

Prints its port as the first line, on 127.0.0.1, then `cancelled METHOD` for each call that the caller
gave up or that ran out of time; of an Upload or a Chat not always, since grpcio may take a broken
stream of requests for one that has ended. NAME is what it calls itself in replies, "python" by default, and the
domain of the ErrorInfo among the details of its errors.
"""

import sys
import threading
from concurrent import futures

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orphan import die_with_parent
from stubs import echo, echo_grpc

SERVICE = echo.DESCRIPTOR.services_by_name["Echo"].full_name
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Echo(echo_grpc.EchoServicer):
    def __init__(self, name):
        self.name = name

    def Call(self, request, context):
        with Call("Call", context, self.name) as call:
            call.wait(request)
            call.fail(request)
            return self.reply(request, context)

    def Safe(self, request, context):
        with Call("Safe", context, self.name) as call:
            call.wait(request)
            call.fail(request)
            return self.reply(request, context)

    def Download(self, request, context):
        with Call("Download", context, self.name) as call:
            call.wait(request)
            for count in range(1, request.repeat + 1):
                yield self.reply(request, context, count)
            call.fail(request)

    def Upload(self, request_iterator, context):
        with Call("Upload", context, self.name) as call:
            message, payload, count = "", b"", 0
            for request in request_iterator:
                call.wait(request)
                call.fail(request)
                message, payload, count = message + request.message, payload + request.payload, count + 1
            return self.reply(echo.EchoRequest(message=message, payload=payload), context, count)

    def Chat(self, request_iterator, context):
        with Call("Chat", context, self.name) as call:
            for count, request in enumerate(request_iterator, 1):
                call.wait(request)
                call.fail(request)
                yield self.reply(request, context, count)

    def reply(self, request, context, count=0):
        left = context.time_remaining()  # without a deadline: until the end of time
        return echo.EchoReply(
            message=request.message,
            payload=request.payload,
            instance=self.name,
            count=count,
            hops=[self.name],
            remaining_ms=0 if left > 1e9 else int(left * 1000),
        )


class Call:
    """What every call has: metadata that go back, an end, and a line if that end is not of our making."""

    def __init__(self, method, context, server):
        self.method = method
        self.context = context
        self.server = server
        self.trailers = []
        self.finished = False
        self.over = threading.Event()

    def __enter__(self):
        if not self.context.add_callback(self.ended):
            self.ended()
        sent = self.context.invocation_metadata()
        self.trailers = [pair for pair in sent if pair.key.startswith("x-trail-")]
        self.context.set_trailing_metadata(self.trailers)
        self.context.send_initial_metadata([pair for pair in sent if pair.key.startswith("x-echo-")])
        return self

    def __exit__(self, kind, error, trace):
        # A stream whose reader has gone ends by GeneratorExit, one whose writer has gone by an error.
        self.finished |= kind is None

    def wait(self, request):
        self.over.wait(request.delay_ms / 1000)

    def fail(self, request):
        if request.fail_code:
            self.finished = True
            code = CODES.get(request.fail_code, grpc.StatusCode.UNKNOWN)
            status = status_pb2.Status(code=code.value[0], message=request.fail_message)
            info = error_details_pb2.ErrorInfo(domain=self.server, reason=code.name)
            status.details.add().Pack(info)
            self.trailers.append(("grpc-status-details-bin", status.SerializeToString()))
            self.context.set_trailing_metadata(self.trailers)
            self.context.abort(code, request.fail_message)

    def ended(self):
        self.over.set()
        if not self.finished:
            print("cancelled", self.method, flush=True)


def main(name="python"):
    server = grpc.server(futures.ThreadPoolExecutor(64))
    echo_grpc.add_EchoServicer_to_server(Echo(name), server)
    healths = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    for service in ["", SERVICE]:
        healths.set(service, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    die_with_parent()
    main(*sys.argv[1:])
