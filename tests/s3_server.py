"""An S3-compatible server in a process of its own, and URIs on it that pyarrow opens.

Not a thread: where an unfinished upload is garbage collected, pyarrow ends it while it holds the interpreter's lock (26.0), and waits for ever for a server
that needs the same lock to answer.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

BUCKET = "longtail"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[str]:
    """Serve on `host` for the length of a block; gives the end of a URI: f"s3://{BUCKET}/prefix?{end}"."""
    import boto3

    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ |= CREDENTIALS
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", host, "-p", "0"]
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, stderr=said) as server:  # a pipe would fill up with its log
        try:
            port = _port(said, server)
            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
            yield f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=false"
        finally:
            server.terminate()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _port(said: IO[str], server: subprocess.Popen[bytes], timeout_s: float = 60) -> int:
    """The port that the server says it has."""
    limit = time.monotonic() + timeout_s
    while time.monotonic() < limit and server.poll() is None:
        said.seek(0)
        found = re.search(r"Running on http://127\.0\.0\.1:(\d+)", said.read())
        if found:
            return int(found[1])
        time.sleep(0.1)
    said.seek(0)
    raise RuntimeError(f"moto's server does not start: {said.read()}")
