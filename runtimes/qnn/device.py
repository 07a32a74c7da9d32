"""Lets a newer QNN library take the device configuration that ExecuTorch writes in the layout of QNN 2.37."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_uint32, c_uint64, c_void_p
from typing import Any

from runtimes.errors import Missing

WIDE = (5, 47)  # HTP interface of QNN 2.47, the oldest seen to expect the wide layout
DEVICE_CREATE = 40  # among the functions of a provider
CUSTOM = 0  # the kind of configuration that a backend defines itself


class Provider(Structure):
    """QnnInterface_t: who provides which versions, then the functions."""

    _fields_ = (
        ("backend", c_uint32),
        ("name", c_void_p),
        ("core", c_uint32 * 3),
        ("version", c_uint32 * 3),
        ("functions", c_void_p * (DEVICE_CREATE + 1)),
    )


class DeviceConfig(Structure):
    """QnnDevice_Config_t."""

    _fields_ = (("kind", c_uint32), ("value", c_void_p))


class Narrow(Structure):
    """QnnHtpDevice_CustomConfig_t of QNN 2.37: what is set, and a union of structs of numbers."""

    _fields_ = (("option", c_uint32), ("value", c_uint32 * 2))


class Wide(Structure):
    """The same since the union may hold a pointer too, which aligns it to eight bytes."""

    _fields_ = (("option", c_uint32), ("padding", c_uint32), ("value", c_uint32 * 2))


Configs = POINTER(POINTER(DeviceConfig))  # ends with a null pointer
Create = ctypes.CFUNCTYPE(c_uint64, c_void_p, Configs, c_void_p)


def accept_narrow_configs(library: ctypes.CDLL) -> Any:
    """Put a function that widens configurations before the library's own deviceCreate, in this process's memory.

    Older libraries are left as they are. From then on the library understands the narrow layout only, but within
    `as_published`. What is returned must live as long as the library. Raises Missing for a library without providers.
    """
    return [_widening(provider) for provider in _providers(library) if tuple(provider.version[:2]) >= WIDE]


def _providers(library: ctypes.CDLL) -> list[Provider]:
    found, count = POINTER(POINTER(Provider))(), c_uint32()
    if error := library.QnnInterface_getProviders(ctypes.byref(found), ctypes.byref(count)):
        raise Missing(f"{library._name} offers no QNN interface: error {error}", hint="install another QNN SDK")
    return [found[index].contents for index in range(count.value)]


def _widening(provider: Provider) -> Any:
    given = Create(provider.functions[DEVICE_CREATE])

    def create(log: int | None, configs: Any, device: int | None) -> int:
        widened, kept = widen(configs)
        error: int = given(log, widened, device)
        del kept  # until here the library reads it
        return error

    function = Create(create)
    _given.append((provider, provider.functions[DEVICE_CREATE]))
    provider.functions[DEVICE_CREATE] = ctypes.cast(function, c_void_p).value
    return function


_given: list[tuple[Provider, Any]] = []
"""Providers that widen, each with the library's own function."""


@contextmanager
def as_published() -> Iterator[None]:
    """Within the block the libraries take the layout they publish, for those who write it: ONNX Runtime's provider."""
    widening = [provider.functions[DEVICE_CREATE] for provider, _ in _given]
    for provider, own in _given:
        provider.functions[DEVICE_CREATE] = own
    try:
        yield
    finally:
        for (provider, _), function in zip(_given, widening, strict=True):
            provider.functions[DEVICE_CREATE] = function


def widen(configs: Any) -> tuple[Any, list[Any]]:
    """The same configurations in the wide layout, and what they point to, which must outlive them."""
    made: list[DeviceConfig] = []
    customs: list[Wide] = []
    index = 0
    while configs and configs[index]:
        config = configs[index].contents
        if config.kind == CUSTOM:
            narrow = Narrow.from_address(config.value)
            customs.append(Wide(narrow.option, 0, narrow.value))
            config = DeviceConfig(CUSTOM, ctypes.addressof(customs[-1]))
        made.append(config)
        index += 1
    pointers = (POINTER(DeviceConfig) * (len(made) + 1))(*map(ctypes.pointer, made))
    return ctypes.cast(pointers, Configs), [pointers, *made, *customs]
