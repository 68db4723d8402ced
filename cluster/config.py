"""From YAML files and `key=value` words to one frozen dataclass, strictly.

The dataclasses that components keep beside themselves are the schema (OmegaConf structured configs). A file
may begin with `extends: other.yaml` (or a list; later ones win, the file itself wins over all); paths are
relative to the file. Always true of what `load` returns: every key exists in the schema, every value has its
type and lies in its range, and every `check()` was content. Whatever is not so is a UserError that names the
key's full path and what it accepts.

Ranges are field metadata, so that no component needs to import this module:

    workers: int = field(default=2, metadata={"ge": 1, "le": 64})

Conditions across fields are a method `check(self) -> None` that raises ValueError with a sentence; it runs on
every dataclass of the tree, the innermost first.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster.errors import UserError

Settings = TypeVar("Settings")
_RANGES = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "more than"),
    "le": (lambda value, bound: value <= bound, "at most"),
    "lt": (lambda value, bound: value < bound, "less than"),
}


def load(
    schema: type[Settings],
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    shipped: Path | None = None,
) -> Settings:
    """Return the checked settings.

    `source` is a YAML file, or the name of one in the folder `shipped` (with or without .yaml), or what such a file
    holds, or None for the schema's defaults; `overrides` are words like `learner.lr=1e-4`, applied in order. Raises
    UserError.
    """
    config = OmegaConf.structured(schema)
    if isinstance(source, Mapping):
        config = _apply(config, schema, source, origin="")
    elif source is not None:
        path = find(source, shipped)
        for file, content in _chain(path, shipped, ()):
            config = _apply(config, schema, content, origin=f" (in {file})")
    for word in overrides:
        config = _apply(config, schema, _parse_override(word), origin="")
    return _finish(config, schema)


def find(source: str | Path, shipped: Path | None) -> Path:
    """The file that `source` means; raises UserError with the names that there are."""
    if not str(source).strip():
        raise UserError("The configuration file's name is empty; leave it out for the default.")
    path = Path(source)
    candidates = [path]
    if shipped is not None and len(path.parts) == 1:
        candidates += [shipped / path, shipped / f"{path}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted(file.stem for file in shipped.glob("*.yaml")) if shipped is not None else []
    known = f"; shipped with the package: {', '.join(names)}" if names else ""
    raise UserError(f"There is no configuration file {source}{known}.")


def dump(settings: Any) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings), resolve=True)


# --- reading ------------------------------------------------------------------------------------------------


def _chain(path: Path, shipped: Path | None, above: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files to apply, the most general first."""
    path = path.resolve()
    if path in above:
        raise UserError(f"{path} extends itself, through {' -> '.join(str(p) for p in above)}.")
    content = _read(path)
    for parent in _parents(path, content.pop("extends", [])):
        beside = path.parent / parent
        yield from _chain(beside if beside.is_file() else find(parent, shipped), shipped, (*above, path))
    yield path, content


def _parents(path: Path, extends: Any) -> list[str]:
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"extends is {_shown(extends)} and must be a file's name or a list of them (in {path}).")
    return names


def _read(path: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} must hold keys with values, not a list or a single value.")
    return _plain(content)


def _parse_override(word: str) -> dict[str, Any]:
    key, equals, _ = word.partition("=")
    if not equals or not key.strip() or any(not part for part in key.split(".")):
        raise UserError(f"'{word}' is not of the form key=value, as in run.seed=1.")
    try:
        return _plain(OmegaConf.from_dotlist([word]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"The value in '{word}' cannot be read: {' '.join(str(error).split())}.") from error


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=False)
    return cast(dict[str, Any], content)


# --- checking and merging -----------------------------------------------------------------------------------


def _apply(config: DictConfig, schema: type, content: Mapping[str, Any], origin: str) -> DictConfig:
    """`config` after `content` is merged into it key by key, so that an error can name the key."""
    for path, value, kind in _leaves(schema, content, "", origin):
        if isinstance(value, float) and kind is int and value.is_integer():
            value = int(value)
        nested: Any = value
        for name in reversed(path.split(".")):
            nested = {name: nested}
        try:  # "unsafe" means in place: a merge copies all of it, key by key
            config = cast(DictConfig, OmegaConf.unsafe_merge(config, nested))
        except OmegaConfBaseException as error:
            raise UserError(f"{path} is {_shown(value)} and must be {describe(kind)}{origin}.") from error
    return config


def _leaves(schema: type, content: Any, prefix: str, origin: str) -> Iterator[tuple[str, Any, Any]]:
    """(full path, value, type) of everything in `content` that is not itself a section."""
    if not isinstance(content, Mapping):
        if isinstance(content, str) and content.startswith("${"):
            yield prefix, content, schema
            return
        raise UserError(
            f"{prefix} is {_shown(content)} and must be a section with the keys {', '.join(_keys(schema))}{origin}."
        )
    hints = _hints(schema)
    for key, value in content.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if key not in hints:
            raise UserError(_unknown(path, str(key), schema) + origin + ".")
        section = _section(hints[key])
        if section is not None and not (value is None and _optional(hints[key])):
            yield from _leaves(section, value, path, origin)
        else:
            _check_items(hints[key], value, path, origin)
            yield path, value, hints[key]


def _check_items(kind: Any, value: Any, path: str, origin: str) -> None:
    """Unknown keys inside lists and dictionaries of dataclasses; their values are OmegaConf's to convert."""
    if isinstance(value, Mapping) and typing.get_origin(kind) in (list, tuple):
        raise UserError(f"{path} is {value!r} and must be {describe(kind)}, given whole{origin}.")
    item = _item_section(kind)
    if item is None or value is None:
        return
    named = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in named:
        for _ in _leaves(item, entry, f"{path}.{name}", origin):
            pass


def _unknown(path: str, key: str, schema: type) -> str:
    keys = _keys(schema)
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    where = path.rpartition(".")[0] or "the configuration"
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"There is no key {path}; {hint}{where} has {', '.join(keys)}"


def _finish(config: DictConfig, schema: type[Settings]) -> Settings:
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"{', '.join(missing)} must be given (as key=value or in the configuration file).")
        settings = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        if told := _told(error):
            raise told from error
        where = getattr(error, "full_key", None) or "the configuration"
        raise UserError(f"{where} cannot be resolved: {str(error).splitlines()[0].rstrip('.')}.") from error
    except (ValueError, TypeError) as error:  # a dataclass's own __post_init__
        raise UserError(f"The configuration is refused: {error}.") from error
    validate(settings)
    return cast(Settings, settings)


def _told(error: BaseException | None) -> UserError | None:
    """What a resolver said in its own words, which OmegaConf wraps."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def validate(settings: Any, prefix: str = "") -> None:
    """Ranges and `check()` of a tree of dataclasses; raises UserError with the full path."""
    for field in dataclasses.fields(settings):
        path = f"{prefix}.{field.name}" if prefix else field.name
        value = getattr(settings, field.name)
        for name, entry in _nested(value):
            validate(entry, f"{path}{name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path} is {value!r} and must be a finite number.")
        for bound, (holds, words) in _RANGES.items():
            if bound in field.metadata and value is not None and not holds(value, field.metadata[bound]):
                raise UserError(f"{path} is {value!r} and must be {words} {field.metadata[bound]!r}.")
    check = getattr(settings, "check", None)
    if check is not None:
        try:
            check()
        except ValueError as error:
            raise UserError(f"{prefix or 'The configuration'}: {str(error).rstrip('.')}.") from error


def _nested(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield "", value
    named = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, entry in named:
        if dataclasses.is_dataclass(entry):
            yield f".{name}", entry


# --- types --------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    """As it is written in YAML, where that differs from Python."""
    return "null" if value is None else repr(value)


def describe(kind: Any) -> str:
    """A type in words: what a key accepts."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return f"a section with the keys {', '.join(_keys(kind))}"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if kind is types.NoneType or kind is None:
        return "null"
    if origin in (list, tuple):
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return f"a list of {describe(inner[0])}" if inner else "a list"
    if origin is dict:
        return f"a section of names with {describe(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(str(member.name) for member in kind)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _hints(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema) if field.init}


def _keys(schema: type) -> list[str]:
    return list(_hints(schema))


def _optional(kind: Any) -> bool:
    return types.NoneType in typing.get_args(kind)


def _section(kind: Any) -> type | None:
    """The dataclass that a field holds, if it holds one."""
    for candidate in (kind, *typing.get_args(kind)) if _optional(kind) else (kind,):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _item_section(kind: Any) -> type | None:
    """The dataclass that a list's or dictionary's entries are, if they are."""
    if typing.get_origin(kind) in (list, tuple, dict):
        for argument in typing.get_args(kind):
            if isinstance(argument, type) and dataclasses.is_dataclass(argument):
                return argument
    return None
