"""A model small enough to be counted by hand, and the real ones, each built once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from workflows.capacity import run, stages
from workflows.capacity.architecture import Architecture, Parts, TextShape, VisionShape, architecture, model_files

PARTS = Parts(vision=100, projector=20, language=800, embeddings=80)


@pytest.fixture(scope="session")
def shape() -> Architecture:
    """1000 parameters, all of them trained."""
    text = TextShape(hidden=8, layers=3, heads=4, kv_heads=2, head=2, mlp=16, vocabulary=32, query_norms=False)
    vision = VisionShape(hidden=4, layers=2, mlp=6, gated=True, patch=14, merge=2, inputs=12, projectors=1)
    return Architecture("small", text, vision, PARTS, PARTS, adapters=0, largest=40)


@pytest.fixture(scope="session")
def real() -> Callable[..., Architecture]:
    """(name, frozen parts) -> a known model, built without memory."""
    return functools.cache(lambda name, freeze=(): architecture(model_files(name), freeze))


@pytest.fixture(autouse=True)
def count_once(monkeypatch) -> None:
    """Plans count the same few models again and again: each is built once."""
    for module in (stages, run):
        monkeypatch.setattr(module, "architecture", _once)


def _once(files: Any, freeze: tuple[str, ...] = (), lora: Any = None) -> Architecture:
    key = json.dumps([files.config, freeze, repr(lora)], sort_keys=True) + files.address
    if key not in _BUILT:
        _BUILT[key] = architecture(files, freeze, lora)
    return _BUILT[key]


_BUILT: dict[str, Architecture] = {}
