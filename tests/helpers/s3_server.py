"""An S3 server on loopback, in a process of its own that ends with this one: moto, without persistence."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

# S3 decides a conditional request and carries it out in one step. moto looks first and writes then, so its
# requests are taken one by one.
PROGRAM = """
import collections, json, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)
one_by_one = threading.Lock()
counted = collections.Counter()  # requests by method, which GET /_requests tells


def application(environ, start_response):
    if environ["PATH_INFO"] == "/_requests":
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(counted).encode()]
    counted[environ["REQUEST_METHOD"]] += 1
    with one_by_one:
        return moto(environ, start_response)


server = make_server("127.0.0.1", 0, application, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(("127.0.0.1", server.server_port), flush=True)
sys.stdin.read()
"""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


class S3Server:
    """Where the server listens."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def new_bucket(self) -> str:
        """Make a bucket that nobody else has."""
        name = f"bucket-{uuid.uuid4().hex}"
        urllib.request.urlopen(
            urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"), timeout=10
        ).close()
        return name


@contextmanager
def s3_server() -> Iterator[S3Server]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the S3 server did not start; is moto[server] installed?")
        try:
            yield S3Server(*ast.literal_eval(line))
        finally:
            process.kill()
