"""The import guard, in fresh interpreters, against a torchvision of the test's own making."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GUARD = Path(__file__).parents[3] / "infra/torchvision_guard"
PACKAGE = """
import torch
if hasattr(torch.ops.torchvision, "nms"):
    print("declared")
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): ...
"""


def interpret(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    package = tmp_path / "torchvision"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "_C.so").write_bytes(b"no library")
    # -S leaves the environment's own guard out; its packages are added by hand.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(GUARD)!r}]; sys.path.append({site!r})\n"
    return subprocess.run([sys.executable, "-S", "-c", paths + program], capture_output=True, text=True, check=False)


@pytest.mark.timeout(60)
def test_without_the_guard_a_build_that_does_not_fit_breaks_at_import(tmp_path):
    done = interpret(tmp_path, "import torchvision")
    assert "torchvision::nms does not exist" in done.stderr


@pytest.mark.timeout(60)
def test_with_the_guard_it_imports_and_only_then_is_torch_loaded(tmp_path):
    program = (
        "import mmsearch_torchvision_guard as guard; guard.install(); guard.install()\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('torchvision') is not None\n"
        "assert 'torch' not in sys.modules\n"
        "import torchvision\n"
        "assert not [finder for finder in sys.meta_path if 'TorchvisionFinder' in repr(finder)]"
    )
    done = interpret(tmp_path, program)
    assert (done.returncode, done.stdout) == (0, "declared\n"), done.stderr
