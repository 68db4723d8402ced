"""An S3 server that answers errors: said in a sentence, nothing old is lost, and the next try goes through."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

import cluster.drives
from cluster.blobs import BlobMissing, BlobStore
from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from cluster.storage_failures import storage_failed
from cluster.telemetry import Metrics, read
from cluster.trackers import Tracking
from workflows.grpo.checkpoint import CheckpointStore
from workflows.grpo.ports import ControllerState
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.work_buffer import WorkBuffer

NO_CURVES = Tracking(trackers=())


@dataclass
class Faulty:
    """A real S3 server before which somebody answers what is written with an error, while `status` says so."""

    app: Callable
    status: str = ""
    code: str = ""
    after: int = 0  # writes that still go through
    refused: list[str] = field(default_factory=list)

    def __call__(self, environ, start_response):
        if self.status and environ["REQUEST_METHOD"] == "PUT":
            self.after -= 1
            if self.after < 0:
                self.refused.append(environ["PATH_INFO"])
                body = f"<Error><Code>{self.code}</Code><Message>Not now</Message></Error>".encode()
                start_response(self.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
                return [body]
        return self.app(environ, start_response)

    def refuse(self, status: str, code: str, after: int = 0) -> None:
        self.status, self.code, self.after = status, code, after

    def works(self) -> None:
        self.status = ""


@pytest.fixture
def server(monkeypatch) -> Iterator[tuple[Faulty, Folder]]:
    """The server, and a folder in an empty bucket on it. A refused request is not sent again, to save time."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faulty = Faulty(DomainDispatcherApplication(create_backend_app))
    listening = make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{listening.server_port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(cluster.drives, "ATTEMPTS", 1)
    bucket = f"refusals-{listening.server_port}"
    boto3.client("s3", endpoint_url=f"http://{address}").create_bucket(Bucket=bucket)
    yield faulty, Folder(f"s3://{bucket}/run?endpoint_override={address}&scheme=http")
    listening.shutdown()
    thread.join(10)


@pytest.mark.parametrize(
    ("status", "code", "ending"),
    [
        ("500 Internal Server Error", "InternalError", RunBroken),
        ("507 Insufficient Storage", "InsufficientCapacity", RunBroken),
        ("403 Forbidden", "AccessDenied", UserError),
    ],
)
def test_an_answer_that_refuses_leaves_the_old_file_and_is_told_by_its_kind(server, status, code, ending):
    faulty, folder = server
    folder.write_text("a", "old")
    faulty.refuse(status, code)
    with pytest.raises(OSError, match=r"Not now|refuses access") as refusal:
        folder.write_text("a", "new")
    told = storage_failed("the checkpoint could not be written", refusal.value)
    assert type(told) is ending
    assert "\n" not in str(told)
    faulty.works()
    assert folder.read_text("a") == "old"


def test_a_blob_that_was_refused_is_nowhere_and_goes_up_with_the_next_try(server, tmp_path):
    faulty, folder = server
    store = BlobStore(tmp_path / "here", folder)
    faulty.refuse("500 Internal Server Error", "InternalError")
    with pytest.raises(OSError, match="Not now"):
        store.put(b"picture")
    faulty.works()
    name = store.put(b"picture")
    assert BlobStore(tmp_path / "elsewhere", folder).get(name) == b"picture"
    with pytest.raises(BlobMissing):
        store.get("0" * 64)


def test_metrics_wait_for_a_storage_that_answers_errors(server):
    faulty, folder = server
    said: list[str] = []
    times = iter(range(100))
    with Metrics(folder, tracking=NO_CURVES, say=said.append, flush_every_s=0, clock=lambda: float(next(times))) as log:
        log.log(1, {"x": 1})
        faulty.refuse("500 Internal Server Error", "InternalError")
        log.log(2, {"x": 2})
        log.log(3, {"x": 3})
        assert [line["step"] for line in read(folder)] == [1]
        faulty.works()
        log.log(4, {"x": 4})
        assert [line["step"] for line in read(folder)] == [1, 2, 3, 4]
        faulty.refuse("500 Internal Server Error", "InternalError")
        log.log(5, {"x": 5})
        log.log(6, {"x": 6})
        with pytest.raises(RunBroken, match=r"could not be copied to .*, 3 times in a row: .*Not now"):
            log.log(7, {"x": 7})
        faulty.works()
    assert [line["step"] for line in read(folder)] == [1, 2, 3, 4, 5, 6, 7]
    assert len(said) == 4
    assert "metrics.jsonl could not be copied to" in said[0]


def state(step: int) -> ControllerState:
    cursor = PromptsCursor(["q"], 0).snapshot()
    return ControllerState(step, step, WorkBuffer(2, 1).snapshot(), cursor, {})


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_whichever_file_of_a_checkpoint_is_refused_the_one_before_stays(server, after):
    """The learner's one, the groups, the state, the marker: four writes."""
    faulty, folder = server
    said: list[str] = []
    store = CheckpointStore(folder, {}, 1, said.append)

    async def save(where: Folder) -> None:
        where.write_json("state.json", {"steps": 1, "parts": 0, "ranks": 0})

    await store.write(state(1), [], save)
    faulty.refuse("500 Internal Server Error", "InternalError", after)
    with pytest.raises(OSError, match="Not now"):
        await store.write(state(2), [], save)
    faulty.works()
    newest = store.latest()
    assert newest is not None
    assert newest.state == state(1)
    assert folder.list() == ["step-000001-00"]
    await store.write(state(3), [], save)
    assert folder.list() == ["step-000003-00"]
