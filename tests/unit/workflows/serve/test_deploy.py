"""The documents that Ray Serve is told, and those that are shipped."""

import copy
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from cluster.errors import UserError
from workflows.serve.deploy import document, draining, starting, swapped, weights_of
from workflows.serve.settings import ServeSettings
from workflows.settings import SHIPPED, load

MADE = document(ServeSettings(port=8123), {"config": "embedded"}, "/models/a", {"OMP_NUM_THREADS": "1"})
SHIPPED_FILES = sorted((SHIPPED / "serve").glob("*.yaml"))


def shipped(file: Path):
    return yaml.safe_load(file.read_text())


def strictly(content):
    """Serve's schema leaves unknown keys out without a word, so each level is compared with its own."""
    for schema, parts in (
        (ServeDeploySchema, [content]),
        (HTTPOptionsSchema, [content["http_options"]]),
        (ServeApplicationSchema, content["applications"]),
        (DeploymentSchema, [one for app in content["applications"] for one in app.get("deployments", ())]),
    ):
        for part in parts:
            assert set(part) <= set(schema.model_fields), (schema.__name__, set(part))
    return ServeDeploySchema.model_validate(content)


@pytest.mark.parametrize(
    "content", [MADE, *map(shipped, SHIPPED_FILES)], ids=["made", *[f.stem for f in SHIPPED_FILES]]
)
def test_serve_takes_the_document_with_every_key_of_it(content):
    strictly(content)


def test_both_shipped_documents_are_looked_at():
    assert {file.stem for file in SHIPPED_FILES} == {"one_machine", "cluster"}


@pytest.mark.parametrize("file", SHIPPED_FILES, ids=lambda file: file.stem)
def test_the_args_of_a_shipped_document_are_settings_of_ours(file):
    (application,) = shipped(file)["applications"]
    settings = load(application["args"]["config"], application["args"]["overrides"])
    assert settings.serve.host == shipped(file)["http_options"]["host"]
    assert settings.serve.request.seconds < shipped(file)["http_options"]["request_timeout_s"]


def test_the_service_begins_with_its_weights_as_version_one():
    assert weights_of(MADE) == {"checkpoint": "/models/a", "version": 1}


def test_a_swap_changes_nothing_but_the_weights():
    before = copy.deepcopy(MADE)
    changed = swapped(MADE, "/models/b")
    assert weights_of(changed) == {"checkpoint": "/models/b", "version": 2}
    weights_of(changed).update(weights_of(before))
    assert changed == before == MADE


def test_draining_shuts_the_doors_and_changes_nothing_else():
    changed = draining(MADE)
    doors = [one for one in changed["applications"][0]["deployments"] if one["name"] == "Ingress"]
    assert [one["user_config"] for one in doors] == [{"draining": True}]
    doors[0]["user_config"] = {"draining": False}
    assert changed == MADE


def test_a_cluster_without_our_service_is_told_in_one_sentence():
    with pytest.raises(UserError, match="mmsearch serve"):
        weights_of({"applications": [{"name": "other", "deployments": [{"name": "Agent", "user_config": {}}]}]})


def test_who_is_awaited_is_told():
    assert starting({"Agent": {"status": "UPDATING"}, "Search": {"status": "HEALTHY"}}) == "waiting for Agent"
    assert starting({}) == "starting"
