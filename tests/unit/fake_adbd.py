"""An Android device on a loopback socket, for the real adb program: shells with separate streams, and nothing else.

Of the protocol in adb's sources, docs/dev/protocol.md, it speaks CNXN, OPEN, WRTE, OKAY and CLSE, of the services
`shell,v2`. It has no keys, no files of its own and no Android: /data/local/tmp is a folder here, commands run in this
machine's sh, and what Android's programs would say are functions of that.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

HOME = "/data/local/tmp"
MESSAGE = struct.Struct("<4s5I")
PACKET = struct.Struct("<BI")  # of the shell protocol
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
VERSION, MOST = 0x01000001, 1 << 18
BANNER = b"device::ro.product.name=fake;ro.product.model=Loopback;ro.product.device=fake;features=shell_v2,cmd"


@dataclass
class Device:
    """What it has may be changed while it runs.

    folder:    where /data/local/tmp is, as tmp
    programs:  scripts found before this machine's own, by name
    replaced:  texts in commands, and what is run instead
    cut_after: bytes of stdin of a shell that it takes before the cable is pulled; None puts it back
    """

    folder: Path
    programs: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None

    def __post_init__(self) -> None:
        (self.folder / "tmp").mkdir(parents=True)
        self.replaced[HOME] = str(self.folder / "tmp")
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def serial(self) -> str:
        """What adb connects to, and calls it."""
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """A command of the device's shell."""
        defined = "".join(f"{name}() {{\n{script}\n}}\n" for name, script in self.programs.items())
        for text, instead in self.replaced.items():
            command = command.replace(text, instead)
        return subprocess.Popen(
            ["sh", "-c", defined + command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def close(self) -> None:
        """Nobody connects any more."""
        self._listening.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._listening.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=Connection(self, accepted).serve, daemon=True).start()


class Connection:
    """One adb server. Streams have the number that it gave them, on both sides."""

    def __init__(self, device: Device, socket: socket.socket) -> None:
        self.device, self._socket = device, socket
        self._reading = socket.makefile("rb")
        self._sending = threading.Lock()
        self._shells: dict[int, Shell] = {}

    def serve(self) -> None:
        """Until the other side or the cable is gone."""
        with suppress(OSError, EOFError):
            while True:
                self._message()
        for shell in list(self._shells.values()):
            shell.end()

    def send(self, kind: bytes, first: int, second: int, content: bytes = b"") -> None:
        """One message."""
        words = first, second, len(content), sum(content), int.from_bytes(kind, "little") ^ 0xFFFFFFFF
        with self._sending:
            self._socket.sendall(MESSAGE.pack(kind, *words) + content)

    def cut(self) -> None:
        """As when the cable is pulled."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def _message(self) -> None:
        kind, theirs, ours, size, _, _ = MESSAGE.unpack(_exactly(self._reading, MESSAGE.size))
        content = _exactly(self._reading, size)
        if kind == b"CNXN":
            self.send(b"CNXN", VERSION, MOST, BANNER)
        elif kind == b"OPEN":
            service, _, command = content.rstrip(b"\0").decode().partition(":")
            if service.startswith("shell,v2") and "raw" in service:
                self.send(b"OKAY", theirs, theirs)
                self._shells[theirs] = Shell(self, theirs, command)
            else:
                self.send(b"CLSE", 0, theirs)
        elif kind == b"WRTE" and ours in self._shells:
            self._shells[ours].given.put(content)
        elif kind == b"OKAY" and ours in self._shells:
            self._shells[ours].acknowledged.release()
        elif kind == b"CLSE" and ours in self._shells:
            self._shells.pop(ours).end()


class Shell:
    """One command, its streams in packets."""

    def __init__(self, connection: Connection, number: int, command: str) -> None:
        self.given, self.acknowledged = queue.SimpleQueue[bytes | None](), threading.Semaphore(0)
        self._connection, self._number = connection, number
        self._process = connection.device.start(command)
        self._rest, self._taken = b"", 0
        self._writing = threading.Lock()
        for work in (self._run, self._feed):
            threading.Thread(target=work, daemon=True).start()

    def end(self) -> None:
        """The other side is gone."""
        self.given.put(None)
        self.acknowledged.release()

    def _feed(self) -> None:
        while (content := self.given.get()) is not None:
            self._rest += content
            with suppress(OSError):
                while self._packet():
                    pass
                self._connection.send(b"OKAY", self._number, self._number)
        with suppress(OSError):
            cast(BinaryIO, self._process.stdin).close()

    def _packet(self) -> bool:
        """Whether there was a whole one."""
        if len(self._rest) < PACKET.size:
            return False
        kind, size = PACKET.unpack(self._rest[: PACKET.size])
        if len(self._rest) < PACKET.size + size:
            return False
        packet, self._rest = self._rest[PACKET.size : PACKET.size + size], self._rest[PACKET.size + size :]
        with suppress(OSError, ValueError):  # the command has closed its stdin
            self._fed(kind, packet)
        return True

    def _fed(self, kind: int, packet: bytes) -> None:
        stdin = cast(BinaryIO, self._process.stdin)
        if kind == CLOSE_STDIN:
            stdin.close()
        if kind != STDIN:
            return
        most = self._connection.device.cut_after
        self._taken += len(packet)
        stdin.write(packet if most is None else packet[: max(0, most - self._taken + len(packet))])
        stdin.flush()
        if most is not None and self._taken >= most:
            self._connection.cut()

    def _run(self) -> None:
        streams = ((STDOUT, self._process.stdout), (STDERR, self._process.stderr))
        told = [threading.Thread(target=self._tell, args=(kind, stream), daemon=True) for kind, stream in streams]
        for each in told:
            each.start()
        for each in told:
            each.join()
        with suppress(OSError):
            self._send(EXIT, bytes([self._process.wait() & 0xFF]))
            self._connection.send(b"CLSE", self._number, self._number)

    def _tell(self, kind: int, stream: BinaryIO) -> None:
        with suppress(OSError):
            while content := os.read(stream.fileno(), MOST - PACKET.size):
                self._send(kind, content)

    def _send(self, kind: int, content: bytes) -> None:
        with self._writing:
            self._connection.send(b"WRTE", self._number, self._number, PACKET.pack(kind, len(content)) + content)
            self.acknowledged.acquire()


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
