"""The service as a Ray Serve application: `mmsearch serve` deploys it, and so do `serve deploy` and a RayService.

    Ingress (FastAPI: keys, bounds, pictures, page)  ->  Agent (an engine and its episodes)  ->  Search (a gateway)

Always true: what is deployed follows from settings alone; which weights run is the `user_config` of the agents, so that
replicas that come later run the same, and a change of it swaps weights in flight.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from actors.search.fetch.reader import DirectReader
from cluster.errors import UserError
from workflows.run_folder import RunFolder
from workflows.serve.about import about, examples
from workflows.serve.agent import Agent, AgentPlan
from workflows.serve.api import build as routes
from workflows.serve.ingress import Ingress
from workflows.serve.search import Search
from workflows.serve.till import Till, journal_folder
from workflows.settings import Settings, load

INGRESS, AGENT, SEARCH = "Ingress", "Agent", "Search"
_ARGUMENTS = ("config", "overrides", "settings")
HEALTH_S, HEALTH_TIMEOUT_S = 3.0, 20.0  # between two questions to a replica; until one that hangs is replaced


def build(args: dict[str, Any]) -> Application:
    """The application of a configuration: `{"config": FILE or shipped name, "overrides": ["run.name=mine", ...]}`, or
    `{"settings": {...}}` with what such a file holds.

    Its weights come with the agents' `user_config`, `{"checkpoint": ADDRESS, "version": N}`; without one it is
    `serve.checkpoint`, which must then be an address. Raises `UserError`.
    """
    if unknown := set(args) - set(_ARGUMENTS):
        raise UserError(f"The application's args hold {', '.join(sorted(unknown))}; accepted: {', '.join(_ARGUMENTS)}.")
    return application(load(args.get("settings") or args.get("config"), args.get("overrides") or ()))


def application(settings: Settings) -> Application:
    """The three deployments, bound to each other."""
    till = Till(settings.serve.keys, journal_folder(settings.run.folder))
    search = _search(settings).bind(settings.search, till)
    agent = _agent(settings).bind(
        AgentPlan(
            settings.engine, settings.agent.protocol.name, settings.agent.limits, settings.serve.events_per_second
        ),
        search,
    )
    return _ingress(settings).bind(settings, agent, till)


def _deployment(made: type[Any]) -> Any:
    return serve.deployment(made)  # its overloads tell pyright of a function


def _kept(end_s: float) -> dict[str, float]:
    """How its replicas are watched, and how long each may take to end."""
    return {
        "graceful_shutdown_timeout_s": end_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
    }


def _ingress(settings: Settings) -> Any:
    chosen = settings.serve
    return _deployment(serve.ingress()(Door)).options(
        name=INGRESS,
        num_replicas=chosen.ingresses,
        max_ongoing_requests=chosen.most_requests + 64,  # so that it is the ingress that says 429
        ray_actor_options={"num_cpus": chosen.ingress_cpus},
        max_queued_requests=chosen.most_requests,
        **_kept(chosen.longest_s),
    )


def _agent(settings: Settings) -> Any:
    chosen = settings.serve
    scale: dict[str, Any] = {"num_replicas": chosen.agents}
    if chosen.max_agents > chosen.agents:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=chosen.agents,
                max_replicas=chosen.max_agents,
                target_ongoing_requests=chosen.target_episodes,
            )
        }
    weights = {"user_config": {"checkpoint": chosen.checkpoint, "version": 1}} if chosen.checkpoint else {}
    return _deployment(Agent).options(
        name=AGENT,
        max_ongoing_requests=chosen.episodes,
        max_queued_requests=chosen.room,  # the ingress refuses before: Serve would count a burst as waiting
        ray_actor_options={"num_cpus": chosen.agent_cpus, "num_gpus": chosen.agent_gpus},
        **_kept(chosen.longest_s),
        **scale,
        **weights,
    )


def _search(settings: Settings) -> Any:
    chosen = settings.serve
    scale: dict[str, Any] = {"num_replicas": chosen.search_replicas}
    if chosen.max_search_replicas > chosen.search_replicas:
        pool = settings.search.pool
        policy = AutoscalingPolicy(
            policy_function="workflows.serve.scaling:QuotaAwareScaling",
            policy_kwargs={
                "min": chosen.search_replicas,
                "max": chosen.max_search_replicas,
                "per_actor": pool.per_actor,
                "up_after_s": pool.up_after_s,
                "down_after_s": pool.down_after_s,
                "turn_every_s": pool.turn_every_s,
            },
        )
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=chosen.search_replicas,
                max_replicas=chosen.max_search_replicas,
                upscale_delay_s=0.0,  # the policy has delays of its own
                downscale_delay_s=0.0,
                policy=policy,
            )
        }
    return _deployment(Search).options(
        name=SEARCH,
        max_ongoing_requests=1024,  # most of them wait; how many are sent at once is the quotas' business
        ray_actor_options={"num_cpus": chosen.search_cpus},
        **_kept(chosen.drain_s),
        **scale,
    )


class Door(Ingress):
    """The ingress as Serve makes it: its routes are built where they run."""

    def __init__(self, settings: Settings, agent: Any, till: Till) -> None:
        shown = settings.engine.images_per_prompt
        request = replace(settings.serve.request, pictures=min(settings.serve.request.pictures, shown))
        chosen = replace(settings.serve, request=request)
        reader = DirectReader() if chosen.remote_pictures else None
        log = settings.run.folder / "serve/pictures" if chosen.log_pictures else None
        super().__init__(chosen, chosen.model or settings.run.name, agent, till, reader, log)
        run = RunFolder(settings.run.folder)
        found = examples(run, run.images(), chosen) if chosen.page else []

        def tell(version: int) -> dict[str, Any]:
            return about(chosen, settings.search, self.model, version, shown, found)

        tell(-1)  # a provider that is not there is told now
        self._routes = partial(routes, self, chosen, tell, found)

    def __serve_build_asgi_app__(self) -> Any:
        return self._routes()
