"""What a person is told about an S3 that does not answer; what it does when it answers is tested against a server."""

from __future__ import annotations

import pickle

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from cluster.drives import S3Drive, S3Failed, S3Forbidden
from cluster.errors import UserError
from cluster.storage import Folder


@pytest.fixture
def fails(monkeypatch):
    """An S3 whose every answer is this exception."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)

    def with_(error: Exception) -> Folder:
        def raises(*_: object, **__: object) -> None:
            raise error

        folder = Folder("s3://bucket/run")
        for name in ("cat_file", "pipe_file", "exists", "ls", "find"):
            monkeypatch.setattr(folder._drive._files, name, raises)
        return folder

    return with_


@pytest.mark.parametrize("what", ["exists", "list", "sizes", "read_json", "ensure_writable"])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), 'endpoint URL: "http://127.0.0.1:1"'),
        (PermissionError("Access Denied."), "refuses access: Access Denied; check"),
        (NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
    ],
)
def test_an_s3_that_fails_is_one_sentence_whatever_is_asked_of_it(fails, what, error, says):
    call = getattr(fails(error), what)
    with pytest.raises(UserError) as caught:
        call("name") if what == "read_json" else call()
    assert says in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", [S3Failed, S3Forbidden])
def test_a_failure_of_s3_is_one_of_a_file_too_and_travels_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("It is gone.")))
    assert isinstance(error, OSError)
    assert error.message == "It is gone."


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://host:1", "http://"])
def test_an_endpoint_that_is_none_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(UserError, match="must be like http://host:port"):
        S3Drive()
