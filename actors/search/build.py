"""A gateway from its configuration: providers are classes named by dotted path."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from typing import Any

from actors.agent.seams import ImageStore
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.quota.actor import endpoint_id, lease_source
from actors.search.quota.desk import LeaseDesk
from actors.search.settings import ProviderSettings, SearchSettings
from actors.search.sources import Endpoints
from actors.search.store.shared_cache import AnswerDoor
from cluster.errors import UserError

# what summarises pages where nothing is configured: needs no model
EXTRACTIVE = ProviderSettings(path="actors.search.pages.extractive:ExtractiveSummariser", name="extractive")


def provider_class(settings: ProviderSettings) -> type[Any]:
    """The class that `settings.path` names. Raises UserError when the path leads nowhere."""
    module_name, _, class_name = settings.path.partition(":")
    if not module_name or not class_name:
        raise UserError(f"search provider {settings.path!r} is not of the form package.module:Class")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"search provider {settings.path!r} cannot be imported: {error}") from error


def endpoint(settings: ProviderSettings, quota_folder: str = "") -> Endpoint[Any]:
    """The provider that `settings` names, made, at the desk of its quota where it has one.

    Raises UserError when its class does not take the kwargs.
    """
    made = provider_class(settings)
    try:
        provider = made(**settings.kwargs)
    except TypeError as error:
        raise UserError(f"search provider {settings.path!r} does not take these kwargs: {error}") from error
    name = settings.name or made.__name__
    desk = None
    if settings.quota is not None:
        called = endpoint_name(settings)
        desk = LeaseDesk(called, lease_source(called, settings.quota, settings.usd_per_call, quota_folder))
    locale = " ".join(str(settings.kwargs[part]) for part in ("country", "language") if settings.kwargs.get(part))
    return Endpoint(name, provider, settings.usd_per_call, desk, settings.quota, locale)


def endpoint_name(settings: ProviderSettings) -> str:
    """How the quota broker and the journal of a provider with its key are called. Raises UserError."""
    made = provider_class(settings)
    return endpoint_id(settings.name or made.__name__, _key(made, settings.kwargs))


def _key(made: type[Any], kwargs: dict[str, Any]) -> str:
    """The key that a provider of this class will read from the environment; "" for one that needs none."""
    parameter = inspect.signature(made).parameters.get("key_env")
    variable = kwargs.get("key_env", parameter.default if parameter else "")
    return os.environ.get(str(variable), "")


def build_gateway(settings: SearchSettings, images: ImageStore, door: AnswerDoor | None = None) -> Gateway:
    """The gateway over the configured providers, on this process's clock. `door`: a cache shared with other workers."""

    def made(providers: Sequence[ProviderSettings]) -> tuple[Endpoint[Any], ...]:
        return tuple(endpoint(one, settings.quota_folder) for one in providers)

    summarisers = settings.summarisers or ([EXTRACTIVE] if settings.readers else [])
    endpoints = Endpoints(
        text=made(settings.text),
        image=made(settings.image),
        grounder=endpoint(settings.grounder, settings.quota_folder) if settings.grounder else None,
        readers=made(settings.readers),
        summarisers=made(summarisers),
    )
    return Gateway(settings, images, endpoints, door)
