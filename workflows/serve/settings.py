"""What a service may be told: who may come in, how much it takes, how many of what it runs. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from ipaddress import ip_address

GRACE_S = 5.0  # beyond a request's own time, for an agent to end what it does
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@dataclass(frozen=True)
class KeySettings:
    """Somebody who may come in. The key itself is nowhere: `mmsearch serve key NAME` makes one and prints its hash."""

    name: str = ""
    # for logs and metrics
    sha256: str = ""
    # of the key, in hexadecimal
    requests_per_minute: float = field(default=60.0, metadata={"gt": 0})
    # a burst of as many is taken at once
    usd_per_day: float | None = field(default=None, metadata={"gt": 0})
    # of searches, from midnight UTC; no bound when not given

    def check(self) -> None:
        if not _NAME.match(self.name) or self.name == "anybody":
            raise ValueError(
                f"name is {self.name[:64]!r}: logs and metrics call a key by it, so give it up to 64 letters, digits"
                " and . _ - (anybody is taken)"
            )
        if not _SHA256.match(self.sha256):
            raise ValueError(
                f"sha256 of key {self.name!r} is not 64 lower-case hexadecimal digits; `mmsearch serve key` prints it"
            )


@dataclass(frozen=True)
class RequestSettings:
    """What one request may hold and cost. A request may ask for less of the last four, never for more."""

    body_mib: float = field(default=32.0, metadata={"gt": 0})
    # of JSON, pictures in it included
    pictures: int = field(default=8, metadata={"ge": 0})
    # of the whole conversation; at most engine.images_per_prompt are shown to the model
    picture_mib: float = field(default=20.0, metadata={"gt": 0})
    # of one, decoded from base64 or fetched
    messages: int = field(default=64, metadata={"ge": 1})
    # of a conversation
    characters: int = field(default=40_000, metadata={"ge": 1})
    # of all texts together
    choices: int = field(default=4, metadata={"ge": 1})
    # the most that `n` may be
    turns: int | None = field(default=None, metadata={"ge": 1})
    # of the agent, its answer included; the protocol's own bound when not given
    tool_calls: int | None = field(default=None, metadata={"ge": 0})
    # searches; the protocol's own bound when not given
    cost_usd: float | None = field(default=None, metadata={"gt": 0})
    # of searches; none is begun when it is reached. No bound when not given
    seconds: float = field(default=120.0, metadata={"gt": 0})
    # from the request to its answer, waiting included


@dataclass(frozen=True)
class ServeSettings:
    """The service. One Ray Serve application of three deployments: ingress, agent, search."""

    host: str = "127.0.0.1"
    # what the HTTP proxy listens on; anything but loopback needs keys
    port: int = field(default=8000, metadata={"ge": 1, "le": 65535})
    model: str = ""
    # the model's name in the API; the run's name when empty
    checkpoint: str | None = None
    # base, sft or rl of the run, a model folder, or a run's folder; the run's newest stage when not given
    keys: list[KeySettings] = field(default_factory=list)
    # empty: everybody on this machine may come in, and nobody else
    origins: list[str] = field(default_factory=list)
    # web pages of other origins that browsers may let in, as https://example.org
    request: RequestSettings = field(default_factory=RequestSettings)
    queue: int = field(default=16, metadata={"ge": 1})
    # requests that may wait beside those that max_agents play, over which 429 is answered at once; of each ingress
    # replica. More wait as long as fewer agents run
    episodes: int = field(default=32, metadata={"ge": 1})
    # that one agent replica plays at a time; at most engine.max_num_seqs of them sample at once
    agents: int = field(default=1, metadata={"ge": 1})
    # agent replicas at least
    max_agents: int = field(default=1, metadata={"ge": 1})
    # and at most: they follow the requests under way
    target_episodes: float = field(default=16.0, metadata={"gt": 0})
    # requests under way per agent replica that the number of replicas aims at
    agent_cpus: float = field(default=1.0, metadata={"ge": 0})
    agent_gpus: float = field(default=0.0, metadata={"ge": 0})
    # of a replica; its engine's tensor_parallel_size on GPUs
    ingresses: int = field(default=1, metadata={"ge": 1})
    # ingress replicas; each takes a few hundred clients
    ingress_cpus: float = field(default=0.2, metadata={"ge": 0})
    search_replicas: int = field(default=1, metadata={"ge": 1})
    max_search_replicas: int = field(default=1, metadata={"ge": 1})
    # between which the search replicas follow useful load: waiting for a quota is none
    search_cpus: float = field(default=0.2, metadata={"ge": 0})
    haproxy: bool = False
    # HAProxy, which ray[serve] brings along, in place of Ray's own proxy: more answers a second, but its counts
    # of requests can then be read at two more ports, from every address
    events_per_second: float = field(default=20.0, metadata={"gt": 0, "le": 100})
    # of a stream, at most: what comes faster is put together
    drain_s: float = field(default=60.0, metadata={"ge": 0})
    # that requests under way are given when the service is to end
    ready_timeout_s: float = field(default=600.0, metadata={"gt": 0})
    # for all replicas to start, or to take new weights
    remote_pictures: bool = True
    # let clients name pictures by http(s) addresses, which the guarded fetcher opens; never those of private networks
    page: bool = True
    # the page to try it on, at /
    log_pictures: bool = False
    # write the pictures of requests to serve/pictures of the run's folder, for looking into what went wrong

    @property
    def room(self) -> int:
        """Choices that are played or wait at one ingress: its share of what the agents can play, and the queue."""
        return math.ceil(self.episodes * self.max_agents / self.ingresses) + self.queue

    @property
    def most_requests(self) -> int:
        """Under way at one ingress, those included that it still reads or fetches pictures for."""
        return 2 * (self.queue + self.episodes * self.max_agents)

    @property
    def longest_s(self) -> float:
        """That a replica which is to go may need for what it has begun."""
        return max(self.drain_s, self.request.seconds + GRACE_S)

    def check(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, so that others can reach the service, and keys is empty: name who may come in"
                " (`mmsearch serve key NAME` prints what to write), or bind to 127.0.0.1"
            )
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names) or len({key.sha256 for key in self.keys}) < len(names):
            raise ValueError("two keys have one name or one hash")
        for low, high in (("agents", "max_agents"), ("search_replicas", "max_search_replicas")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is {getattr(self, low)} and must be at most {high}={getattr(self, high)}")
        for origin in self.origins:
            if not re.fullmatch(r"https?://[a-zA-Z0-9.-]+(:\d{1,5})?", origin):
                raise ValueError(
                    f"origins holds {origin!r}: write scheme and host, as https://example.org, no path, no *"
                )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
