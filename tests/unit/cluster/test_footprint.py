"""Memory of a process and of what it starts."""

import subprocess
import sys

from cluster.footprint import MemoryWatch, pss, tree_pss

HOLD = "import sys; held = bytearray(b'x') * (64 << 20); print('ready', flush=True); sys.stdin.read()"


def test_a_child_counts_while_it_lives():
    before = tree_pss()
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert pss(child.pid) > 60 << 20
        with MemoryWatch(every_s=60) as watch:
            watch.look()
        child.stdin.close()  # type: ignore[union-attr]
    assert watch.peak > before + (50 << 20)
    assert pss(child.pid) == 0
