"""A transport is named in the configuration, and what does not fit is refused there."""

from __future__ import annotations

import pytest

from actors.weights.buckets import ObjectStoreTransport, StorageTransport
from actors.weights.build import build_transport
from actors.weights.settings import PublishSettings
from actors.weights.transport import FolderTransport
from cluster.errors import UserError


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (PublishSettings(), FolderTransport),
        (PublishSettings("object_store"), ObjectStoreTransport),
        (PublishSettings("storage", "somewhere"), StorageTransport),
    ],
)
def test_each_name_is_a_transport(settings, kind, tmp_path):
    settings.check()
    assert type(build_transport(settings, tmp_path / "root")) is kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PublishSettings("storage"), "needs an address"),
        (PublishSettings("shared_memory", "s3://bucket"), "has no address"),
        (PublishSettings("nccl", "s3://bucket"), "has no address"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings.check()


def test_an_address_that_no_storage_has_is_said_at_once(tmp_path):
    with pytest.raises(UserError, match="cannot be used for files"):
        build_transport(PublishSettings("storage", "ftp://host/weights"), tmp_path)


def test_the_key_of_a_run_s_configuration_is_learner_publish():
    from workflows.settings import load

    assert load(None, ["learner.publish.transport=object_store"]).learner.publish == PublishSettings("object_store")
    with pytest.raises(UserError, match="transport storage needs an address"):
        load(None, ["learner.publish.transport=storage"])
