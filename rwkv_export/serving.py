"""Tells people where a page is served and what comes of it, until it is over; what is served is decided elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rwkv_export.output import remark

if TYPE_CHECKING:
    from validation.serve.app import Site


def wait(site: Site, *, host: str | None, port: int, local: bool, once: bool, quiet: bool) -> None:
    """Serve until Ctrl-C, or with `once` until the first browser is done.

    Raises KeyboardInterrupt where no browser came, and what serving raises.
    """
    from validation.serve import server
    from validation.serve.events import events

    where = host or (server.LOCAL if local else server.address())
    with server.serving(site.app(), host=where, port=port, secure=not local) as origin:
        address = f"{origin}/{site.token}/"
        print(address, flush=True)
        remark(_advice(origin, local=local), quiet=quiet)
        if not local and not quiet:
            import segno

            segno.make(address, error="l").terminal(out=sys.stderr, compact=True)
        try:
            for sentence in events(site, once=once):
                remark(sentence, quiet=quiet)
        except KeyboardInterrupt:
            if not site.visits:
                raise
        finally:
            site.close()


def _advice(origin: str, *, local: bool) -> str:
    if local:
        port = origin.rpartition(":")[2]
        return f"Open it in a browser here; for a phone on USB first run: adb reverse tcp:{port} tcp:{port}"
    return "Open it on a device in the same network; its warning is about a certificate that was made for this run."
