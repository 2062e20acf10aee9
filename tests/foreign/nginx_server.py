"""Starts nginx: a server, and a proxy in front of ours, that is not ours.

    nginx_server.py NGINX [UPSTREAM | --files]

NGINX is the program. Prints two ports as the first line, on 127.0.0.1: one for HTTP/1.1, one for HTTP/2
without TLS. With UPSTREAM, a HOST:PORT, what is asked for below / is passed on to it: over HTTP/1.1 from
the first port, as gRPC from the second.

With --files, the second line is a folder; its files are served below /files/.

    /nginx/hello    `hello from nginx`
    /nginx/missing  404
    /nginx/broken   500
    /nginx/file     1 MiB of `x`
    /nginx/brief    `brief`, after which an idle connection is closed within some 10 ms
    /nginx/last     `last`, the last answer on its connection

Its files lie in a folder below TMPDIR, which stays behind if it is killed rather than terminated.
"""

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

from orphan import die_with_parent

PR_SET_PDEATHSIG = 1  # of linux/prctl.h

# In the foreground, all its files in one folder.
CONF = """
daemon off;
pid nginx.pid;
error_log stderr emerg;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 0;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{http1};
        include own.conf;
        {http1_pass}
    }}
    server {{
        listen 127.0.0.1:{http2} http2;
        include own.conf;
        {http2_pass}
    }}
}}
"""
OWN = """
location = /nginx/hello { return 200 "hello from nginx"; }
location = /nginx/missing { return 404; }
location = /nginx/broken { return 500; }
location = /nginx/file { alias file; }
location = /nginx/brief { keepalive_timeout 10ms; return 200 "brief"; }
location = /nginx/last { keepalive_timeout 0; return 200 "last"; }
location /files/ { root here; }
location /files/moved/ { return 302 /files/; }
"""
PASS = 'location / {{ proxy_pass http://{0}; proxy_http_version 1.1; proxy_set_header Connection ""; }}'
GRPC_PASS = "location / {{ grpc_pass grpc://{0}; }}"


def end_with_parent():
    """Run in the process that becomes nginx: Linux ends it with this one, even if that is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(nginx, upstream=None):
    with_files = upstream == "--files"
    upstream = None if with_files else upstream
    # nginx can't choose a port. It can take over listeners, known by their addresses: so these are ours.
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    http1, http2 = (listener.getsockname()[1] for listener in listeners)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        root.chmod(0o711)  # a worker of a master run by root is somebody else
        (root / "file").write_bytes(b"x" * (1 << 20))
        (root / "own.conf").write_text(OWN.replace("alias file", f"alias {root}/file").replace("root here", f"root {root}"))
        (root / "nginx.conf").write_text(
            CONF.format(
                http1=http1,
                http2=http2,
                http1_pass=PASS.format(upstream) if upstream else "",
                http2_pass=GRPC_PASS.format(upstream) if upstream else "",
            )
        )
        files = root / "files"
        files.mkdir()
        numbers = [listener.fileno() for listener in listeners]
        inherited = "".join(f"{number};" for number in numbers)
        server = subprocess.Popen(
            [nginx, "-p", folder, "-c", "nginx.conf", "-e", "start.log"],
            env={**os.environ, "NGINX": inherited},
            pass_fds=numbers,
            preexec_fn=end_with_parent,
        )
        print(http1, http2, flush=True)
        if with_files:
            print(files, flush=True)
        if status := server.wait():
            sys.exit(f"nginx ended with status {status}\n" + (root / "start.log").read_text())


if __name__ == "__main__":
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    main(*sys.argv[1:])
