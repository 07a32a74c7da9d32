"""Which matrices an export leaves unquantised: one spelling for every target, as text or a file; stores nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from exporter.contract import Option
from runtimes.errors import WrongCall, did_you_mean
from runtimes.manifest import Kept

NONE = "none"
REASON = "asked for by -O keep"


def read(text: str) -> str:
    """Names separated by commas; those of a file, one a line, where the text names a file; raises WrongCall."""
    if Path(text).is_file():
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WrongCall(f"cannot read the names to keep in {text}: {error}") from error
    lines = [line.partition("#")[0] for line in text.splitlines()]
    found = [name.strip().removesuffix(".weight") for line in lines for name in line.split(",") if name.strip()]
    if not found:
        raise WrongCall("option keep names no matrix", hint="for example -O keep=head,blocks.0.att.key")
    return ",".join(dict.fromkeys(found))


OPTION = Option(
    "keep",
    (),
    NONE,
    "matrices to leave unquantised, as NAME,NAME or in a file, one a line: head, blocks.3.ffn.value, blocks.*.att.w, "
    "blocks.0; `rwkv-export sensitivity` recommends them",
    read,
)


def holds(options: Mapping[str, str], parameter: str) -> bool:
    """Whether a parameter of the step module, "blocks.3.ffn.value.weight", is to stay as it is."""
    return any(_matches(name, parameter) for name in names(options))


def names(options: Mapping[str, str]) -> tuple[str, ...]:
    """What was asked for, without repetition."""
    text = options.get(OPTION.name, NONE)
    return () if text == NONE else tuple(text.split(","))


def kept(options: Mapping[str, str], dtype: str) -> tuple[Kept, ...]:
    """What the manifest says of them; `dtype` is what they stay in."""
    return tuple(Kept(name, dtype, REASON) for name in names(options))


def refuse(precision: str, options: Mapping[str, str], *, quantised: bool) -> None:
    """Raise WrongCall where a precision quantises nothing that could be kept."""
    if names(options) and not quantised:
        raise WrongCall(f"precision {precision} quantises nothing to keep", hint=f"leave out -O {OPTION.name}")


def require_known(options: Mapping[str, str], parameters: Iterable[str]) -> None:
    """Raise WrongCall for a name that matches none of a model's parameters."""
    known = list(parameters)
    for name in names(options):
        if not any(_matches(name, parameter) for parameter in known):
            matrices = {parameter.removesuffix(".weight") for parameter in known if parameter.endswith(".weight")}
            raise WrongCall(f"option keep: this model has no matrix {name!r}", hint=_closest(name, matrices))


def _matches(name: str, parameter: str) -> bool:
    """The matrix itself, or what contains it; `*` is any part of a name."""
    path = parameter.removesuffix(".weight")
    return fnmatchcase(path, name) or fnmatchcase(path, f"{name}.*")


def _closest(name: str, matrices: Iterable[str]) -> str:
    hint, _, _ = did_you_mean(name, matrices).partition(" known:")
    return hint if hint.startswith("did") else "`rwkv-export sensitivity` lists them"
