"""Does what grpcurl does with these arguments, knowing of a server only what its reflection says.

    grpcurl.py -plaintext HOST:PORT list
    grpcurl.py -plaintext -d JSON HOST:PORT SERVICE/METHOD
"""

import argparse

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PATIENCE = 20  # seconds after which a call that should have been answered is a failure

arguments = argparse.ArgumentParser()
arguments.add_argument("-plaintext", action="store_true", required=True)
arguments.add_argument("-d", default="{}")
arguments.add_argument("address")
arguments.add_argument("what")
given = arguments.parse_args()

with grpc.insecure_channel(given.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    if given.what == "list":
        print("\n".join(sorted(database.get_services())))
    else:
        service, name = given.what.split("/")
        method = descriptor_pool.DescriptorPool(database).FindServiceByName(service).FindMethodByName(name)
        request, reply = (message_factory.GetMessageClass(kind) for kind in [method.input_type, method.output_type])
        call = channel.unary_unary(f"/{given.what}", request.SerializeToString, reply.FromString)
        answer = call(json_format.Parse(given.d, request()), timeout=PATIENCE)
        print(json_format.MessageToJson(answer))
