"""Lets a torchvision whose compiled part does not fit this torch be imported anyway.

Where no `+cpu` build of torchvision can be had, pip brings the CUDA build. Its `_C.so` cannot be loaded
beside a CPU torch, and its Python part then fails at import because it decorates the operators `nms` and
`qnms` that nobody defined. transformers and vLLM need only its transforms, which are pure torch. So, when
torchvision is imported for the first time, this module declares those two operators if, and only if, the
compiled part really cannot be loaded.

`infra/setup.sh` copies this file and the `.pth` beside it into the environment's site-packages, because the
import must also work in Ray's workers, vLLM's spawned engine and its model-inspection subprocess, which run
none of our code first. Always true: importing this module costs next to nothing and imports neither torch nor
torchvision.
"""

import sys

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept_alive = []  # a torch.library.Library takes its operators with it when it is collected


class _TorchvisionFinder:
    """A meta path finder that waits for `torchvision`; it steps aside once that is really imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations:
            _declare_before_exec(spec)
        return spec


def _declare_before_exec(spec):
    """Wraps the loader's exec_module: merely looking for torchvision (find_spec) must not import torch."""
    loader, folder = spec.loader, next(iter(spec.submodule_search_locations))
    run = loader.exec_module

    def exec_module(module):
        if _TorchvisionFinder in sys.meta_path:
            sys.meta_path.remove(_TorchvisionFinder)
            _declare_missing_operators(folder)
        run(module)

    loader.exec_module = exec_module


def _declare_missing_operators(folder):
    import os

    import torch

    try:
        torch.ops.load_library(os.path.join(folder, "_C.so"))
        return  # a matching build: it defines its own operators
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms" + _SCHEMA)
    library.define("qnms" + _SCHEMA)
    _kept_alive.append(library)


def install():
    """Puts the finder first; called by the `.pth` file at interpreter start."""
    if _TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, _TorchvisionFinder)
