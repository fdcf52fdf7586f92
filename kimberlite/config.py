"""The daemon's settings: defaults, a file, the environment and flags, in rising order, and where each came from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

from kimberlite.errors import Invalid, Misconfigured
from kimberlite.log.options import Options
from kimberlite.server.limits import Limits
from kimberlite.server.listening import check_where

PREFIX: Final = "KIMBERLITE_"
#: What the environment says that is no setting: keys, which are never shown.
OTHERS: Final = {"KIMBERLITE_KEY", "KIMBERLITE_CONFIG"}


@dataclass(frozen=True, slots=True)
class Serve:
    """How the daemon itself runs."""

    #: Where clients connect: HOST:PORT on loopback, or unix:PATH.
    listen: str = "127.0.0.1:7411"
    #: Where metrics and health are asked for, HOST:PORT on loopback; "" for nowhere.
    http: str = "127.0.0.1:7412"
    #: The master key's file; "" for the environment's or a systemd credential.
    key_file: str = ""
    #: The file of the key that `keys rotate` makes the master key, read when it is asked for; "" for none.
    next_key_file: str = ""
    #: "auto", "threads" or "uring".
    backend: str = "auto"
    #: Seconds that a stop waits for clients to take their answers.
    drain: float = 4.0
    #: What is logged on stderr: "debug", "info", "warning" or "error"; and how: "text" or "json".
    log_level: str = "info"
    log_format: str = "text"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise Invalid(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.http.startswith("unix:"):
            raise Invalid("http is HOST:PORT, or empty")
        for where in filter(None, (self.listen, self.http)):
            check_where(where)
        if not 0 <= self.drain <= 60:
            raise Invalid("drain is from 0 to 60 seconds")


CHOICES: Final = {
    "backend": ("auto", "threads", "uring"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
}

#: Each section of the file, and what reads it; the first is its top.
SECTIONS: Final[dict[str, type]] = {"": Serve, "log": Options, "limits": Limits}


@dataclass(frozen=True, slots=True)
class Setting:
    """One value, and where it came from."""

    name: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked."""

    serve: Serve
    log: Options
    limits: Limits
    settings: tuple[Setting, ...]


def kinds() -> dict[str, Any]:
    """Every setting by its name, `listen` or `log.sync`, and the type it has."""
    found = {}
    for section, reads in SECTIONS.items():
        hints = get_type_hints(reads)
        for field in fields(reads):
            found[f"{section}.{field.name}" if section else field.name] = hints[field.name]
    return found


def load(
    file: str | os.PathLike[str] | None, environment: Mapping[str, str], flags: Mapping[str, Any], extra: list[str]
) -> Config:
    """`flags` are those that were given; `extra` are NAME=VALUE of `--set`."""
    known = kinds()
    found: dict[str, Setting] = {}
    named = file if file is not None else environment.get("KIMBERLITE_CONFIG") or None
    if named is not None:
        for name, value in of_file(Path(named)):
            place = f"{named}: {name}"
            found[name] = Setting(name, fitting(known, name, value, place), place)
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and variable not in OTHERS:
            meant = variable_names(known).get(variable)
            if meant is None:
                raise Misconfigured(f"{variable}: there is no such setting")
            found[meant] = Setting(meant, parsed(known, meant, environment[variable], variable), variable)
    for name, value in flags.items():
        place = f"--{name.replace('_', '-')}"
        found[name] = Setting(name, fitting(known, name, value, place), place)
    for pair in extra:
        name, equals, text = pair.partition("=")
        if not equals:
            raise Invalid(f"--set takes NAME=VALUE, not {pair!r}")
        place = f"--set {name}"
        found[name] = Setting(name, parsed(known, name, text, place), place)
    return composed(found)


def composed(found: Mapping[str, Setting]) -> Config:
    parts: dict[str, Any] = {}
    settings: list[Setting] = []
    for section, reads in SECTIONS.items():
        names = {field.name: f"{section}.{field.name}" if section else field.name for field in fields(reads)}
        given = {short: found[name] for short, name in names.items() if name in found}
        try:
            part = reads(**{short: setting.value for short, setting in given.items()})
        except Invalid as error:
            raise Misconfigured(f"{blamed(reads, given)}: {error}") from error
        parts[section] = part
        settings += [found.get(name, Setting(name, getattr(part, short), "default")) for short, name in names.items()]
    return Config(parts[""], parts["log"], parts["limits"], tuple(settings))


def blamed(reads: type, given: Mapping[str, Setting]) -> str:
    """Where the value came from that is wrong by itself; all that were given, if they are only wrong together."""
    for short, setting in given.items():
        try:
            reads(**{short: setting.value})
        except Invalid:
            return setting.origin
    return ", ".join(setting.origin for setting in given.values())


def of_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
    except RecursionError as error:
        raise Misconfigured(f"{path}: it is nested too deep") from error
    except ValueError as error:
        # No TOML, no UTF-8, or a number of thousands of digits.
        raise Misconfigured(f"{path}: {error}") from error
    for name, value in data.items():
        if isinstance(value, dict) and name in SECTIONS:
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        elif isinstance(value, dict) or "." in name:
            raise Misconfigured(f"{path}: {name}: there is no such section or setting")
        else:
            yield name, value


def variable_names(known: Mapping[str, Any]) -> dict[str, str]:
    """`log.sync` is KIMBERLITE_LOG_SYNC."""
    return {PREFIX + name.replace(".", "_").upper(): name for name in known}


def fitting(known: Mapping[str, Any], name: str, value: Any, place: str) -> Any:
    if name not in known:
        raise Misconfigured(f"{place}: there is no such setting")
    kind = known[name]
    accepts, what = acceptable(kind)
    if type(value) not in accepts:
        raise Misconfigured(f"{place}: {what} is wanted, not {value!r}")
    return float(value) if accepts == (int, float) else value


def parsed(known: Mapping[str, Any], name: str, text: str, place: str) -> Any:
    if name not in known:
        raise Misconfigured(f"{place}: there is no such setting")
    accepts, what = acceptable(known[name])
    try:
        if type(None) in accepts and text == "":
            return None
        convert: Callable[[str], Any] = str if str in accepts else float if float in accepts else int
        return convert(text)
    except ValueError:
        raise Misconfigured(f"{place}: {what} is wanted, not {text!r}") from None


def acceptable(kind: Any) -> tuple[tuple[type, ...], str]:
    """The types of a value in a file, and what to call them."""
    if kind is float:
        return (int, float), "a number"
    if kind is int:
        return (int,), "a whole number"
    if kind == (int | None):
        return (int, type(None)), "a whole number"
    return (str,), "text"
