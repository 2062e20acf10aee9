"""The stubs of tests/protos, compiled when they are imported, so that none are kept in the tree."""

import importlib
import pathlib
import sys
import tempfile

from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).parent.parent / "protos" / "proto"


def compile_proto(name):
    """The modules for messages and services of the file `name` below tests/protos/proto."""
    with tempfile.TemporaryDirectory() as out:
        if protoc.main(["protoc", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}", name]):
            sys.exit(f"{name} does not compile")
        sys.path.insert(0, out)
        try:
            module = name.removesuffix(".proto").replace("/", ".") + "_pb2"
            return importlib.import_module(module), importlib.import_module(module + "_grpc")
        finally:
            sys.path.remove(out)


echo, echo_grpc = compile_proto("chassis/test/v1/echo.proto")
