"""Plain values come out of a pickle as they went in; whatever would run, or take too much, is refused."""

import builtins
import collections
import fractions
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from actors.search.local.restricted_pickle import Bounds, Foreign, PickleRefused, load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SMALL = Bounds(max_bytes=1 << 20, max_item=1 << 16, max_opcodes=10_000, max_stack=2000, max_depth=16)

BIG = SMALL.max_item + 1

keys = st.text(max_size=5) | st.integers() | st.binary(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=20,
)


def read(data, bounds=SMALL):
    return load(io.BytesIO(data), bounds)


@given(values, st.sampled_from(PROTOCOLS))
def test_plain_values_come_out_as_they_went_in_of_every_protocol(value, protocol):
    found = read(pickle.dumps(value, protocol), Bounds())
    assert found == value
    assert repr(found) == repr(value)  # 1 is not True, a tuple no list


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_items_than_one_batch_and_values_that_are_shared_come_out_too(protocol):
    shared = ["x"]
    value = {"many": list(range(2500)), "pairs": {str(i): i for i in range(2500)}, "twice": [shared, shared]}
    found = read(pickle.dumps(value, protocol), Bounds())
    assert found == value
    assert found["twice"][0] is found["twice"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_picture_comes_out_as_a_record_of_its_state(protocol):
    noted = PngImagePlugin.PngInfo()
    noted.add_itxt("note", "hello", "en", "x")
    encoded = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(encoded, "PNG", pnginfo=noted)
    picture = Image.open(io.BytesIO(encoded.getvalue()))
    picture.load()
    found = read(pickle.dumps([picture, Image.new("L", (1, 1), 7)], protocol))
    assert [one.name for one in found] == ["PIL.PngImagePlugin.PngImageFile", "PIL.Image.Image"]
    assert [type(one) for one in found] == [Foreign, Foreign]
    info, mode, size, palette, data = found[0].state[:5]
    assert (mode, tuple(size), palette, data) == ("RGB", (3, 2), None, b"\xff\0\0" * 6)
    assert info["note"].arguments == ("hello",)
    assert found[1].state[4] == b"\x07"


# --- what would run ---------------------------------------------------------------------------------------


class Calls:
    """Reduces to a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Plain:
    """An object of a class of ours."""


class Told:
    def __getstate__(self):
        return {"x": 1}


HOSTILE = {
    "os.system": Calls(os.system, "touch pwned"),
    "eval": Calls(builtins.eval, "open('pwned', 'w')"),
    "exec": Calls(builtins.exec, "open('pwned', 'w')"),
    "open": Calls(builtins.open, "pwned", "w"),
    "import": Calls(builtins.__import__, "os"),
    "getattr chain": Calls(getattr, Calls(builtins.__import__, "os"), "system"),
    "subprocess": Calls(subprocess.Popen, ["touch", "pwned"]),
    "nested in a list": [1, {"a": (Calls(os.system, "touch pwned"),)}],
    "as a value": {"tool_returned_web_title_list": Calls(os.system, "touch pwned")},
    "a function itself": os.system,
    "a class itself": collections.OrderedDict,
    "bytes from a number": Calls(bytes, 1 << 40),
    "bytearray": Calls(bytearray, 1 << 40),
    "an object of ours": Plain(),
    "an object with a state": Told(),
    "a fraction": fractions.Fraction(1, 3),
    "a complex number": 1j,
    "a set": {1, 2},
    "a frozenset": frozenset({1}),
    "a bytearray": bytearray(b"abc"),
    "a loader of pickles": Calls(pickle.loads, b"cos\nsystem\n(S'touch pwned'\ntR."),
    "a file of Pillow's": Calls(Image.open, "pwned"),
    "an ordered dict": collections.OrderedDict(a=1),
    "Ellipsis": ...,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_run_or_is_no_plain_value_is_never_run(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(HOSTILE[name], protocol)
    if name == "a file of Pillow's":  # comes out as a record, and nothing was opened
        assert read(data) == Foreign("PIL.Image.open", ("pwned",))
    else:
        with pytest.raises(PickleRefused) as caught:
            read(data)
        assert len(str(caught.value)) < 300
    assert os.listdir(tmp_path) == []


ASSEMBLED = {
    "a function of os by its module's other name": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
    "a dotted name below Pillow": b"\x80\x04\x8c\tPIL.Image\x8c\tos.system()\x93)R.",
    "a module that only begins like Pillow": b"cPILfer\nrun\n)R.",
    "a bare name": b"cPIL.Image\nImage\n.",
    "a bare name in a list": b"]cPIL.Image\nImage\na.",
    "a bare name in a tuple": b"(cPIL.Image\nImage\nt.",
    "a bare name in a tuple in a list": b"](cPIL.Image\nImage\nta.",
    "a bare name as a key": b"}cPIL.Image\nImage\nK\x01s.",
    "a bare name as a value": b"}K\x01cPIL.Image\nImage\ns.",
    "a bare name as a state": b"cPIL.Image\nImage\n)\x81cPIL.Image\nImage\nb.",
    "a bare name as an argument": b"cPIL.Image\nImage\n(cPIL.Image\nImage\nt\x81.",
    "a bare name made again": b"ccopyreg\n_reconstructor\n(cPIL.Image\nImage\ncbuiltins\nobject\ncos\nsystem\ntR.",
    "a known name made again": b"ccopyreg\n_reconstructor\n(cPIL.Image\nI\ncbuiltins\nobject\ncbuiltins\nstr\ntR.",
    "another codec": b"c_codecs\nencode\n(VAAAA\nVidna\ntR.",
    "one argument too few": b"c_codecs\nencode\n(VAAAA\ntR.",
    "bytes of a size": b"cbuiltins\nbytes\n(I1000\ntR.",
    "values from below a mark": b"N(\x85t\x86.",
    "a list from below a mark": b"]N(ata.",
    "a function as a base": b"ccopyreg\n_reconstructor\n(cPIL.Image\nImage\nc_codecs\nencode\nNtR.",
    "another base": b"ccopyreg\n_reconstructor\n(cPIL.Image\nImage\ncbuiltins\nint\nI1\ntR.",
    "an object of a function's kind": b"c_codecs\nencode\n)\x81.",
    "a call of a list": b"])R.",
    "a call with a list": b"cPIL.Image\nImage\n]R.",
    "a state for a dict": b"}}b.",
    "a state for a name": b"cPIL.Image\nImage\n}b.",
    "two states": b"cPIL.Image\nImage\n)\x81}b}b.",
    "a name of numbers": b"K\x01K\x02\x93.",
    "a persistent id": b"Pwhatever\n.",
    "a binary persistent id": b"\x80\x04\x8c\x01xQ.",
    "nested persistent ids": b"\x80\x04" + b"\x8c\x01xQ" * 50 + b".",
    "an extension": b"\x82\x01.",
    "an instance of the old form": b"(ios\nsystem\n.",
    "an object of the old form": b"(cos\nsystem\nVls\no.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "a read-only buffer": b"\x80\x05K\x01\x98.",
    "duplicates": b"]2.",
    "throws away": b"]K\x010.",
    "strings of Python 2": b"S'abc'\n.",
}


@pytest.mark.parametrize("name", ASSEMBLED)
def test_programs_that_pickle_never_writes_are_refused(name):
    with pytest.raises(PickleRefused):
        read(ASSEMBLED[name])


def test_every_opcode_that_could_do_more_than_write_values_is_refused():
    refused = {
        *("PERSID", "BINPERSID", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "NEXT_BUFFER"),
        *("READONLY_BUFFER", "POP", "POP_MARK", "DUP", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("EMPTY_SET", "ADDITEMS", "FROZENSET", "BYTEARRAY8"),
    }
    from actors.search.local.restricted_pickle import _STEPS

    assert {opcode.name for opcode in pickletools.opcodes} - set(_STEPS) == refused


# --- what would take too much ---------------------------------------------------------------------------------


def chain(links):
    """Tuples in one another, which take no room on the stack."""
    return b")" + b"\x85" * links + b"."


GREEDY = {
    "text of a size that is not there": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.", "cut short"),
    "bytes of a size that is not there": (b"\x80\x04\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"abc.", "cut short"),
    "bytes of an impossible size": (b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"abc.", "no whole pickle"),
    "a memo of four milliards": (b"\x80\x02]r\xff\xff\xff\xffj\x01\0\0\0.", "never kept"),
    "an item over the bound": (b"\x80\x03B" + struct.pack("<I", BIG) + b"x" * BIG + b".", "one item"),
    "a line over the bound": (b"V" + b"x" * BIG + b"\n.", "one line"),
    "a number of fifty thousand digits": (b"L" + b"9" * 50_000 + b"L\n.", "no whole pickle"),
    "too many opcodes": (b"\x80\x04" * (SMALL.max_opcodes + 1) + b"N.", "opcodes"),
    "too many values waiting": (b"(" + b"N" * (SMALL.max_stack + 1) + b"l.", "waiting"),
    "too many marks": (b"(" * 100 + b".", "waiting"),
    "tuples in one another": (chain(20), "nests"),
    "tuples in one another, as a key": (b"}" + chain(9000)[:-1] + b"Ns.", "nests"),
    "lists in one another": (b"]" * 100 + b"a" * 99 + b".", "nests"),
    "more than the file may have": (b"x" * (SMALL.max_bytes + 1), "are allowed"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_takes_too_much_is_refused_before_it_is_taken(name):
    data, why = GREEDY[name]
    with pytest.raises(PickleRefused, match=why):
        read(data)


def test_a_frame_of_a_size_that_is_not_there_takes_nothing():
    assert read(b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"].") == []  # frames are for reading ahead


def test_doubling_by_the_memo_ends_at_the_depth_that_is_allowed():
    doubled = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(30)) + b"."
    with pytest.raises(PickleRefused, match="nests"):
        read(doubled)


@pytest.mark.parametrize("bound", ["max_bytes", "max_item", "max_opcodes", "max_stack", "max_depth"])
def test_each_bound_is_one_that_a_value_can_meet(bound):
    value = {"title": "x" * 50, "all": [[1, 2, 3], ("a", b"b")]}
    data = pickle.dumps(value, 4)
    assert read(data) == value
    with pytest.raises(PickleRefused):
        read(data, replace(SMALL, **{bound: 2}))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with suppress(PickleRefused):
        read(data)


@given(values, st.sampled_from(PROTOCOLS), st.data())
def test_a_pickle_that_was_cut_or_changed_is_read_or_refused(value, protocol, draw):
    data = bytearray(pickle.dumps(value, protocol))
    place = draw.draw(st.integers(0, len(data) - 1))
    with pytest.raises(PickleRefused):
        read(bytes(data[:place]))
    data[place] = draw.draw(st.integers(0, 255))
    with suppress(PickleRefused):
        read(bytes(data))


def test_what_follows_the_end_is_refused():
    with pytest.raises(PickleRefused, match="3 bytes follow"):
        read(pickle.dumps([1]) + b"abc")


def test_nothing_is_imported_for_a_name_in_the_file():
    sys.modules.pop("PIL.FliImagePlugin", None)  # others may have looked at every kind of picture
    found = read(b"cPIL.FliImagePlugin\nFliImageFile\n)\x81}b.")
    assert found == Foreign("PIL.FliImagePlugin.FliImageFile", (), {})
    assert "PIL.FliImagePlugin" not in sys.modules
