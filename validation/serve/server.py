"""The server's socket, its certificate and its thread; what it serves is app.py's."""

from __future__ import annotations

import datetime
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from runtimes.errors import Missing, WrongCall

LOCAL = "127.0.0.1"
NOWHERE = "198.51.100.1"
"""An address for documentation (RFC 5737): a UDP socket that is connected to it sends nothing."""
DAYS = 30
"""A certificate is valid for so long; Safari accepts none of more than 825 days."""
CONNECTIONS = 128


def address() -> str:
    """This machine's address in the network its default route leads to; raises Missing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((NOWHERE, 9))
        except OSError as error:
            raise Missing(f"this machine is in no network: {error}", hint="use --local, or name --host") from error
        return str(probe.getsockname()[0])


@contextmanager
def serving(app: ASGIApp, *, host: str, port: int, secure: bool) -> Iterator[str]:
    """Serve `app` on another thread within the block; yields where, "https://192.168.1.5:4433"."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening, tempfile.TemporaryDirectory() as folder:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(CONNECTIONS)
        except OSError as error:
            raise WrongCall(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="another --host or --port"
            ) from error
        certificate = _certificate(host, Path(folder)) if secure else None
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="critical",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
            ssl_certfile=certificate,
            ssl_keyfile=certificate,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"{'https' if secure else 'http'}://{host}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def _certificate(host: str, folder: Path) -> Path:
    """A new key with a certificate for `host` in a file that only this user can read."""
    import trustme

    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=DAYS)
    issued = trustme.CA(organization_name="rwkv-export").issue_cert(host, not_after=until)
    path = folder / "certificate.pem"
    path.touch(mode=0o600)
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path
