"""From the root configuration to the plan of a GRPO run: all that it knows of where other stages leave things."""

from __future__ import annotations

import dataclasses
from typing import Any

from actors.model.settings import absolute
from cluster.storage import Folder
from workflows.grpo.cast import Plan
from workflows.run_folder import RunFolder


def plan_of(settings: Any) -> Plan:
    """`settings` is `workflows.settings.Settings`. Defaults: the same run's SFT export and training questions."""
    run = RunFolder(settings.run.folder)
    grpo = settings.grpo
    return Plan(
        name=settings.run.name,
        seed=settings.run.seed,
        folder=run.root / grpo.folder,
        model=absolute(grpo.start_from) if grpo.start_from else run.sft_export.address,
        questions=Folder(grpo.questions) if grpo.questions else run.questions("train"),
        images=run.images(),
        preset=settings.agent.protocol.name,
        limits=settings.agent.limits,
        engine=settings.engine,
        search=settings.search,
        reward=settings.reward,
        learner=settings.learner,
        grpo=grpo,
        cluster=settings.cluster,
        resolved=dataclasses.asdict(settings),
        tracking=settings.tracking("grpo"),
        pictures=settings.pictures,
    )
