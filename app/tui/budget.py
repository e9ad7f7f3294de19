"""A plan for a budget of memory: the job that makes it, how it reads, and the job that follows it.

The formats are imported where they are used: they bring numpy (100 ms). Call everything here in a thread.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.cli.output import human_bytes
from localllm.jobs.record import JobSpec
from localllm.models.store import ModelStore


def plan_spec(store: ModelStore, model: str, size: str, n_ctx: int) -> JobSpec | str:
    """The job that plans for ``size`` (``3GB``); or the name of the result, where it is here already.

    Raises:
        LocalLLMError: The size is none, or the name is taken by another model.
    """
    from quant.fit.job import FitWish, fit_spec

    wish = FitWish(model, size, n_ctx)
    _, found = fit_spec(store, wish)
    if found is not None:
        return str(found.model_name)
    return fit_spec(store, replace(wish, dry_run=True))[0]


def making_spec(planned: JobSpec) -> JobSpec:
    """The job that makes what ``planned`` has planned."""
    return replace(planned, arguments={**planned.arguments, "dry_run": False})


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan in few lines: one for each type, the largest share first, and what it comes to."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for share in plan["shares"]:
        sizes[share["kind"]] += share["n_bytes"]
        counts[share["kind"]] += share["n_tensors"]
    lines = [f"{kind:<8} {human_bytes(size):>9}  {counts[kind]:4} tensors" for kind, size in sizes.most_common()]
    room, memory = human_bytes(plan["budget"]), human_bytes(plan["memory"])
    lines.append(
        f"{human_bytes(plan['n_bytes'])} of {room}, which {memory} leave beside {plan['ctx']:,} tokens of context."
    )
    return [*lines, f"Predicted KL: {plan['predicted_kl']:.4f} nats a token."]
