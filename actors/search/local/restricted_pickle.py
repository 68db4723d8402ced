"""Reading pickles that strangers made: plain values come out, and nothing that a pickle names is ever run.

This is an interpreter of its own for the part of pickle's language that writes plain values. Always true:
- no name in the file is imported, looked up or called: one of Pillow's becomes a `Foreign`, a record of what the file
  said about the object, `_codecs.encode` (bytes, in old protocols) is done here, and any other name is refused;
- what comes out consists of None, bool, int, float, str, bytes, list, tuple, dict and `Foreign`;
- keys of dicts are str, int or bytes, so that hashing one never descends;
- every length that the file claims is compared with what is left of it before a byte is read; the file, its items,
  its opcodes, what waits on the stack and how containers nest are bounded;
- whatever is wrong with the file leaves as `PickleRefused`, one sentence.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

_KEYS = (str, int, bytes)
_PLAIN = (type(None), bool, int, float, str, bytes)
_PROTOCOL = 5
_ENCODE = ("_codecs.encode",)  # how protocols 0 to 2 write bytes
_BYTES = ("builtins.bytes", "__builtin__.bytes")  # and empty ones
_RECONSTRUCT = ("copyreg._reconstructor", "copy_reg._reconstructor")  # how protocols 0 and 1 write an object
_BASES = ("builtins.object", "__builtin__.object", "builtins.str", "__builtin__.unicode")  # the class below it
_KNOWN = {*_ENCODE, *_BYTES, *_RECONSTRUCT, *_BASES}


class PickleRefused(ValueError):
    """A file that is no pickle of plain values, or a larger one than is allowed."""


@dataclass(frozen=True)
class Bounds:
    """What a pickle may take."""

    max_bytes: int = 4 << 30  # of the file
    max_item: int = 256 << 20  # bytes of one string
    max_opcodes: int = 20_000_000  # each makes one small object at most; a released cache has far fewer
    max_stack: int = 20_000  # values waiting for their container; pickle writes 1000 pairs at a time
    max_depth: int = 32  # containers in one another


BOUNDS = Bounds()


@dataclass
class Foreign:
    """An object of one of Pillow's classes: its name, and the state that the file gives it. Nothing was run."""

    name: str  # as in "PIL.JpegImagePlugin.JpegImageFile"
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class _Name:
    """A name in the file, which stands where a class or function would."""

    name: str


class _Machine:
    """The state of one reading."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self._depths: dict[int, int] = {}  # of containers, by id
        self._kept: list[Any] = []  # the same containers: an id is theirs as long as they live
        self._calls: set[int] = set()  # ids of tuples with a name in them, which are good for a call alone

    def take(self, count: int) -> list[Any]:
        """The last values, which must lie above the innermost mark."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise PickleRefused("it takes values that are not there")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleRefused("it takes values that are not there")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def top(self, kind: type | None = None) -> Any:
        """The last value, left where it is; of this very type where one is given."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleRefused("it takes values that are not there")
        found = self.stack[-1]
        if kind is not None and type(found) is not kind:
            raise PickleRefused(f"it fills a {type(found).__name__} as if it were a {kind.__name__}")
        return found

    def holds(self, container: Any, values: Sequence[Any]) -> None:
        """Notes that `container` holds these values. Refuses names, but in tuples, and what is nested too deeply."""
        key = id(container)
        if key not in self._depths:
            self._depths[key] = 1
            self._kept.append(container)
        for value in values:
            if isinstance(value, _PLAIN):
                continue
            if isinstance(value, _Name) or id(value) in self._calls:
                if not isinstance(container, tuple):
                    raise PickleRefused("it keeps a name as a value")
                self._calls.add(key)
            self._depths[key] = max(self._depths[key], 1 + self._depths.get(id(value), 0))
        if self._depths[key] > self.bounds.max_depth:
            raise PickleRefused(f"it nests more than {self.bounds.max_depth} containers")

    def plain(self, value: Any) -> Any:
        """`value`, refused when it is a name or a tuple of such."""
        if isinstance(value, _Name) or id(value) in self._calls:
            raise PickleRefused("it keeps a name as a value")
        return value


def load(stream: BinaryIO, bounds: Bounds = BOUNDS) -> Any:
    """The value that the pickle in `stream` (seekable, read to its end) describes. Raises PickleRefused."""
    source = _Bounded(stream, bounds)
    machine = _Machine(bounds)
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(cast(Any, source)), start=1):
            if count > bounds.max_opcodes:
                raise PickleRefused(f"it has more than {bounds.max_opcodes} opcodes")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleRefused(f"it does more than write plain values ({opcode.name} at byte {position})")
            step(machine, argument)
            if len(machine.stack) > bounds.max_stack or len(machine.marks) > bounds.max_depth:
                raise PickleRefused(f"it keeps too many values waiting (byte {position})")
    except PickleRefused:
        raise
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, MemoryError, UnicodeError) as error:
        raise PickleRefused(f"it is no whole pickle ({type(error).__name__})") from error
    if len(machine.stack) != 1 or machine.marks:
        raise PickleRefused("it does not end with one value")
    if source.left:
        raise PickleRefused(f"{source.left} bytes follow its end")
    return machine.plain(machine.stack[0])


class _Bounded:
    """What `genops` reads from: never asks the file for more than it has, nor for an item over the bound."""

    def __init__(self, stream: BinaryIO, bounds: Bounds) -> None:
        self._stream, self._max_item = stream, bounds.max_item
        start = stream.tell()
        self.left = stream.seek(0, 2) - start
        stream.seek(start)
        if self.left > bounds.max_bytes:
            raise PickleRefused(f"it has {self.left} bytes, and {bounds.max_bytes} are allowed")
        self._size = self.left

    def read(self, size: int) -> bytes:
        if size > self.left and size > 8:  # the few bytes of a number: genops itself sees that they are missing
            raise PickleRefused(f"it is cut short: {size} bytes are announced, {self.left} are left")
        if size > self._max_item:
            raise PickleRefused(f"one item has {size} bytes, and {self._max_item} are allowed")
        return self._taken(self._stream.read(size))

    def readline(self) -> bytes:
        line = self._stream.readline(self._max_item)
        if len(line) == self._max_item and not line.endswith(b"\n"):
            raise PickleRefused(f"one line has more than the {self._max_item} bytes that are allowed")
        return self._taken(line)

    def tell(self) -> int:
        return self._size - self.left

    def _taken(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data


# --- what the opcodes do ------------------------------------------------------------------------------------


Step = Callable[[_Machine, Any], None]


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _protocol(machine: _Machine, argument: Any) -> None:
    if argument > _PROTOCOL:
        raise PickleRefused(f"it is of protocol {argument}, and {_PROTOCOL} is the newest one known")


def _mark(machine: _Machine, argument: Any) -> None:
    machine.marks.append(len(machine.stack))


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(value: Any) -> Step:
    return lambda machine, argument: machine.stack.append(value)


def _empty(kind: type) -> Step:
    def step(machine: _Machine, argument: Any) -> None:
        made = kind()
        machine.holds(made, ())
        machine.stack.append(made)

    return step


def _tuple(count: int) -> Step:
    """`count` values as a tuple; -1: all since the mark."""

    def step(machine: _Machine, argument: Any) -> None:
        made = tuple(machine.take(count) if count >= 0 else machine.since_mark())
        machine.holds(made, made)
        machine.stack.append(made)

    return step


def _append(machine: _Machine, argument: Any) -> None:
    _extend(machine, machine.take(1))


def _appends(machine: _Machine, argument: Any) -> None:
    _extend(machine, machine.since_mark())


def _extend(machine: _Machine, values: list[Any]) -> None:
    container = machine.top(list)
    machine.holds(container, values)
    container.extend(values)


def _set_item(machine: _Machine, argument: Any) -> None:
    _update(machine, machine.take(2))


def _set_items(machine: _Machine, argument: Any) -> None:
    _update(machine, machine.since_mark())


def _update(machine: _Machine, values: list[Any]) -> None:
    container = machine.top(dict)
    if len(values) % 2:
        raise PickleRefused("a key is without its value")
    for key in values[::2]:
        if not isinstance(key, _KEYS):
            raise PickleRefused(f"a key is a {type(key).__name__}, and only text, numbers and bytes are allowed")
    machine.holds(container, values[1::2])
    container.update(zip(values[::2], values[1::2], strict=True))


def _list(machine: _Machine, argument: Any) -> None:
    values = machine.since_mark()
    machine.stack.append([])
    _extend(machine, values)


def _dict(machine: _Machine, argument: Any) -> None:
    values = machine.since_mark()
    machine.stack.append({})
    _update(machine, values)


def _put(machine: _Machine, argument: Any) -> None:
    _remember(machine, argument)


def _memoize(machine: _Machine, argument: Any) -> None:
    _remember(machine, len(machine.memo))


def _remember(machine: _Machine, number: int) -> None:
    machine.memo[number] = machine.top()


def _get(machine: _Machine, argument: Any) -> None:
    if argument not in machine.memo:
        raise PickleRefused(f"it recalls value {argument}, which it never kept")
    machine.stack.append(machine.memo[argument])


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(_name(module, name))


def _stack_global(machine: _Machine, argument: Any) -> None:
    module, name = machine.take(2)
    if type(module) is not str or type(name) is not str:
        raise PickleRefused("it names something by what is no text")
    machine.stack.append(_name(module, name))


def _name(module: str, name: str) -> _Name:
    """The one place where a name of the file is looked at. Raises PickleRefused unless it is harmless and known."""
    full = f"{module}.{name}"
    if full not in _KNOWN and not (module.startswith("PIL.") and all(part.isidentifier() for part in full.split("."))):
        raise PickleRefused(f"it names {full[:100]!r}, which plain values and pictures do not need")
    return _Name(full)


def _new_object(machine: _Machine, argument: Any) -> None:
    named, arguments = machine.take(2)
    machine.stack.append(_foreign(machine, named, arguments))


def _reduce(machine: _Machine, argument: Any) -> None:
    """A call, as the file has it. Nothing is called: the three functions that old protocols need are done by hand."""
    named, arguments = machine.take(2)
    if not isinstance(named, _Name) or type(arguments) is not tuple:
        raise PickleRefused("it calls what is no name")
    if named.name in _ENCODE:
        text, encoding = arguments if len(arguments) == 2 else (None, None)
        if type(text) is not str or encoding != "latin1":
            raise PickleRefused("it encodes bytes in a way that pickle does not")
        machine.stack.append(text.encode("latin1"))
    elif named.name in _BYTES:
        if arguments:
            raise PickleRefused("it makes bytes in a way that pickle does not")
        machine.stack.append(b"")
    elif named.name in _RECONSTRUCT:
        made, base, value = arguments if len(arguments) == 3 else (None, None, None)
        if not isinstance(base, _Name) or base.name not in _BASES:
            raise PickleRefused("it makes an object in a way that pickle does not")
        machine.stack.append(_foreign(machine, made, () if value is None else (value,)))
    else:
        machine.stack.append(_foreign(machine, named, arguments))


def _foreign(machine: _Machine, named: Any, arguments: Any) -> Foreign:
    if not isinstance(named, _Name) or named.name in _KNOWN or type(arguments) is not tuple:
        raise PickleRefused("it makes an object of no known class")
    made = Foreign(named.name, machine.plain(arguments))
    machine.holds(made, arguments)
    return made


def _build(machine: _Machine, argument: Any) -> None:
    (state,) = machine.take(1)
    made = machine.top(Foreign)
    if made.state is not None:
        raise PickleRefused("it gives one object two states")
    machine.holds(made, (state,))
    made.state = machine.plain(state)


_STEPS: dict[str, Step] = {
    "PROTO": _protocol,
    "FRAME": _nothing,
    "STOP": _nothing,
    "MARK": _mark,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push),
    "EMPTY_LIST": _empty(list),
    "EMPTY_DICT": _empty(dict),
    "EMPTY_TUPLE": _tuple(0),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _tuple(-1),
    "LIST": _list,
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "NEWOBJ": _new_object,
    "REDUCE": _reduce,
    "BUILD": _build,
}
