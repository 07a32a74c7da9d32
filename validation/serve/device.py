"""What a browser tells of itself and of the device it runs on, checked; what it does not tell stays empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from typing import Any, TypeVar

from runtimes.schema import SchemaError, from_plain
from validation.outcome import Machine
from validation.serve.ort_web import VERSION
from validation.serve.wire import plain

GIB = 1 << 30


@dataclass(frozen=True)
class Adapter:
    """A WebGPU adapter. software: it computes on the CPU; half: it has float16; max_buffer: bytes of one buffer."""

    vendor: str
    architecture: str
    description: str
    software: bool
    half: bool
    max_buffer: int

    def __str__(self) -> str:
        return " ".join(dict.fromkeys(word for word in (self.vendor, self.architecture, self.description) if word))


@dataclass(frozen=True)
class Device:
    """A browser and what is around it.

    browser, version: "Chromium", "156.0.8078.79"
    model:      of a phone, "Pixel 9"
    cores:      as the browser counts them; memory: GiB, rounded and capped by the browser
    isolated:   whether pages may share memory between threads
    adapter:    of WebGPU; no_adapter says why there is none
    webnn:      device type ("cpu", "gpu", "npu") -> why WebNN offers it no context, "" where it does
    """

    browser: str
    version: str
    system: str
    model: str
    architecture: str
    cores: int
    memory: float
    isolated: bool
    adapter: Adapter | None
    no_adapter: str
    webnn: Mapping[str, str] = field(default_factory=dict)

    def machine(self) -> Machine:
        """The device as results record it."""
        gpu = f"GPU {self.adapter}" if self.adapter and str(self.adapter) else ""
        return Machine(
            system=self.system,
            cpu=", ".join(part for part in (self.model, self.architecture, gpu) if part),
            cores=self.cores,
            memory_bytes=int(self.memory * GIB),
            governor="",
            python="",
            packages={
                self.browser or "browser": self.version,
                "onnxruntime-web": VERSION,
                "rwkv-export": metadata.version("rwkv-export"),
            },
        )

    @property
    def name(self) -> str:
        """A few words for people and file names."""
        return " ".join(
            part for part in (self.browser, self.version.partition(".")[0], self.model or self.system) if part
        )


Told = TypeVar("Told", Adapter, Device)


def read(document: Mapping[str, Any]) -> Device:
    """A device from what a page posted, its texts made harmless; raises SchemaError."""
    device = from_plain(Device, document)
    if not 0 <= device.cores <= 4096 or not 0 <= device.memory <= 1 << 20:
        raise SchemaError("cores or memory cannot be")
    if len(device.webnn) > 8:
        raise SchemaError("more WebNN devices than there are")
    adapter = device.adapter and _harmless(device.adapter)
    webnn = {plain(kind): plain(reason) for kind, reason in device.webnn.items()}
    return replace(_harmless(device), adapter=adapter, webnn=webnn)


def _harmless(thing: Told) -> Told:
    """With every text of it made harmless."""
    texts = {each.name: getattr(thing, each.name) for each in fields(thing)}
    harmless: dict[str, Any] = {name: plain(text) for name, text in texts.items() if isinstance(text, str)}
    return replace(thing, **harmless)
