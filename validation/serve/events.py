"""What happens while a page is served, as sentences for whoever watches; it also says when that is over."""

from __future__ import annotations

import time
from collections.abc import Iterator

from validation.serve.app import Site
from validation.serve.visit import Visit

LAST_LOOK = 5.0
"""Seconds a page that is done is given to fetch what it shows."""


def events(site: Site, *, once: bool, pause: float = 0.3) -> Iterator[str]:
    """A sentence for each browser that comes and each place that is done; with `once`, until the first one is done."""
    told: dict[str, int] = {}
    while True:
        for visit in list(site.visits.values()):
            if visit.id not in told:
                told[visit.id] = 0
                yield f"{visit.device.name} came; its results go to {visit.file}"
            done = [each for each in visit.cells if each.state == "done"]
            for each in sorted(done, key=lambda each: each.finished)[told[visit.id] :]:
                found = ", ".join(dict.fromkeys(row.outcome for row in each.rows))
                yield f"{visit.device.name}: {each.offer.artifact.folder.name} on {each.place.name}: {found}"
            told[visit.id] = len(done)
            if once and _over(visit):
                return
        time.sleep(pause)


def _over(visit: Visit) -> bool:
    """Whether a visit is done and its page has seen so, or will not come back."""
    if not visit.done.is_set():
        return visit.lost
    until = time.monotonic() + LAST_LOOK
    while not visit.told and time.monotonic() < until:
        time.sleep(0.1)
    return True
