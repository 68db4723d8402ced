"""Gateways over providers that answer from lists, on a clock that only sleeping moves."""

import asyncio
import random

from actors.agent.trajectory import Tool, ToolRequest
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.settings import RegionSettings, RetrySettings, SearchSettings
from actors.search.sources import Endpoints
from tests.unit.actors.search.search_world import Colours

SETTINGS = SearchSettings(top_k=3, retry=RetrySettings(retries=2), region=RegionSettings(min_side=8))
FAR = 1e9


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Answers:
    """A provider that answers from a list: hits, or an error to raise; the last one for good."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def search(self, query):
        self.asked.append(getattr(query, "text", ""))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Counting:
    """Any provider of pictures, with its calls counted."""

    def __init__(self, provider) -> None:
        self.provider, self.pictures = provider, []

    async def search(self, image):
        self.pictures.append(image.image)
        return await self.provider.search(image)

    async def ground(self, image, expression):
        self.pictures.append(image)
        return await self.provider.ground(image, expression)


def text_gateway(images, time, *providers, settings=SETTINGS):
    endpoints = [Endpoint(f"p{i}", provider, 0.001) for i, provider in enumerate(providers)]
    return Gateway(
        settings,
        images,
        Endpoints(text=endpoints),
        clock=time,
        wall=lambda: 5.0,
        sleep=time.sleep,
        rng=random.Random(0),
    )


def image_gateway(images, time, grounder=None, provider=None, settings=SETTINGS):
    return Gateway(
        settings,
        images,
        Endpoints(
            image=[Endpoint("colours", provider or Colours(), 0.01)],
            grounder=Endpoint("squares", grounder, 0.002) if grounder else None,
        ),
        clock=time,
        wall=lambda: 5.0,
        sleep=time.sleep,
    )


def text(query="who founded Velmora"):
    return ToolRequest(Tool.TEXT_SEARCH, query)


def look(image, expression="", box=None):
    return ToolRequest(Tool.IMAGE_SEARCH, expression, image=image, box=box)
