import asyncio
import os
import sys
from pathlib import Path

import pytest

from actors.search.fetch import main_text
from actors.search.fetch.extraction import Extractors
from actors.search.seams import ErrorKind, ProviderError

READY = "import os, struct, sys, time; out = sys.stdout.buffer; out.write(bytes(4)); out.flush();"
TAKE = "n = struct.unpack('>I', sys.stdin.buffer.read(4))[0]; page = sys.stdin.buffer.read(n);"
ANSWER = 'a = b\'{"title": "t", "text": "%d"}\' % os.getpid(); out.write(struct.pack(\'>I\', len(a)) + a); out.flush()'


def child(code):
    """The command of a child that says it is ready, takes a page and then does as it is told."""
    return (sys.executable, "-S", "-c", READY + TAKE + code)


async def error_of(extract, html="<p>x</p>"):
    with pytest.raises(ProviderError) as told:
        await asyncio.wait_for(extract(html), 10)
    return told.value


async def test_the_real_child_reads_a_page_and_survives_for_the_next_one():
    extract = Extractors(1, 30.0)
    html = "<html><head><title>Ostra</title></head><body><p>The harbour of Ostra was rebuilt.</p></body></html>"
    assert await extract(html) == ("Ostra", "The harbour of Ostra was rebuilt.")
    (first,) = extract._idle
    assert (await extract(html))[0] == "Ostra"
    assert extract._idle == [first]
    await extract.close()
    assert first.returncode is not None


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(60)",
        "os.kill(os.getpid(), 11)",
        "sys.exit(0)",
        "out.write(b'HTTP'); out.flush(); time.sleep(60)",
        "out.write(struct.pack('>I', 3) + b'no!'); out.flush()",
        "out.write(struct.pack('>I', 2) + b'{}'); out.flush()",
        "out.write(struct.pack('>I', 2) + b'[]'); out.flush()",
    ],
    ids=["hangs", "crashes", "ends", "announces too much", "answers no json", "answers too little", "answers a list"],
)
async def test_a_page_that_breaks_its_child_is_refused_and_the_child_does_not_live_on(code):
    extract = Extractors(1, 0.2, child(code))
    assert (await error_of(extract)).kind is ErrorKind.BAD_REQUEST
    assert extract._idle == []


async def test_a_child_that_died_while_it_waited_is_replaced():
    extract = Extractors(1, 5.0, child(ANSWER))  # it ends after one page
    _, first = await extract("a")
    await extract._idle[0].wait()
    _, second = await extract("b")
    assert first != second
    await extract.close()


async def test_a_caller_that_leaves_takes_its_child_along():
    extract = Extractors(1, 60.0, child("time.sleep(60)"))
    task = asyncio.create_task(extract("x"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert extract._idle == []


@pytest.mark.parametrize("command", [("/no/such/program",), (sys.executable, "-S", "-c", "pass")])
async def test_children_that_do_not_start_are_told_as_something_that_may_pass(command):
    assert (await error_of(Extractors(1, 5.0, command))).kind is ErrorKind.TRANSIENT


async def test_a_child_knows_none_of_the_keys(monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "sk-secret")
    code = 'a = b\'{"title": "", "text": "%d"}\' % (\'SERPER_API_KEY\' in os.environ);'
    extract = Extractors(1, 5.0, child(code + "out.write(struct.pack('>I', len(a)) + a); out.flush()"))
    assert await extract("x") == ("", "0")
    assert "SERPER_API_KEY" in os.environ
    await extract.close()


async def test_what_a_library_prints_is_not_taken_for_an_answer():
    folder = str(Path(main_text.__file__).parent)
    code = f"import os, sys; sys.path.append({folder!r}); import main_text as m;"
    code += (
        "m.title_and_text = lambda html: (os.write(1, b'noise'), print('noise', flush=True), ('t', html))[2]; m._main()"
    )
    extract = Extractors(1, 30.0, (sys.executable, "-P", "-c", code))
    assert await extract("page") == ("t", "page")
    await extract.close()
