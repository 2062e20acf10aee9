"""A small HTTP/1.1 server by Python's standard library: a server that is not ours.

    http_server.py [NAME]

Prints its port as the first line, on 127.0.0.1. NAME is what it calls itself, "python" by default.

    any  /echo/…       what was asked, as JSON: method, path, query, headers as pairs, body, instance
    any  /body         the request's body, as it came
    any  /status/CODE  that status, with the body `status CODE`
    GET  /stream/N     N lines, chunked, each flushed alone
    GET  /slow/MS      `slow`, after so many milliseconds
    GET  /cut/N        promises 1000 bytes, sends N of them, closes
    any  /hang-up      closes without an answer
    any  /close        `bye`, the last answer on its connection
    any  /drop         `bye`, the same without saying that it is the last
    GET  /counts       how often each `METHOD path` was asked so far, as JSON
"""

import collections
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from orphan import die_with_parent


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    name = "python"
    counts = collections.Counter()
    lock = threading.Lock()

    def answer(self):
        url = urlsplit(self.path)
        with self.lock:
            self.counts[f"{self.command} {url.path}"] += 1
        body = self.read_body()
        _, what, *rest = url.path.split("/")
        argument = rest[0] if rest else ""
        if what == "echo":
            self.reply_json(
                method=self.command,
                path=url.path,
                query=url.query,
                headers=self.headers.items(),
                body=body.decode(errors="replace"),
                instance=self.name,
            )
        elif what == "body":
            self.reply(200, body, self.headers.get("content-type", "application/octet-stream"))
        elif what == "status":
            self.reply(int(argument), f"status {argument}".encode())
        elif what == "stream":
            self.stream(int(argument))
        elif what == "slow":
            threading.Event().wait(int(argument) / 1000)
            self.reply(200, b"slow")
        elif what == "cut":
            self.send_head(200, "text/plain", 1000)
            self.wfile.write(b"x" * int(argument))
            self.close_connection = True
        elif what == "hang-up":
            self.close_connection = True
        elif what == "close":
            self.close_connection = True
            self.reply(200, b"bye")
        elif what == "drop":
            self.reply(200, b"bye")
            self.close_connection = True
        elif what == "counts":
            self.reply_json(**self.counts)
        else:
            self.reply(404, f"nothing at {url.path}".encode())

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def read_body(self):
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def stream(self, lines):
        self.send_head(200, "text/plain", None)
        for number in range(lines):
            line = f"line {number}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def reply_json(self, **fields):
        self.reply(200, json.dumps(fields).encode(), "application/json")

    def reply(self, status, body, kind="text/plain"):
        bodiless = status in (204, 304)
        self.send_head(status, kind, None if bodiless else len(body), chunked=False)
        if self.command != "HEAD" and not bodiless:
            self.wfile.write(body)

    def send_head(self, status, kind, length, chunked=True):
        self.send_response(status)
        self.send_header("content-type", kind)
        if length is not None:
            self.send_header("content-length", str(length))
        elif chunked:
            self.send_header("transfer-encoding", "chunked")
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def log_message(self, *_):
        pass


def main(name="python"):
    Handler.name = name
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.request_queue_size = 128
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    die_with_parent()
    main(*sys.argv[1:])
