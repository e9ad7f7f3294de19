"""What a person has chosen on the Train screen, and the recipe that it makes. What reads the disk says so."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.jobs import train_spec, unfinished
from finetune.recipe import Recipe, make_recipe, write_recipe
from localllm.adapters import AdapterStore
from localllm.errors import JobError, UsageError
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec
from localllm.jobs.store import JobStore
from localllm.models.manifest import Manifest
from localllm.models.names import parse_model_name
from localllm.models.store import ModelStore

_END_SECONDS, _LOOK_SECONDS = 10.0, 0.05


@dataclass(frozen=True)
class Setting:
    """A value of the recipe that can be set on the screen.

    Attributes:
        name: In the recipe.
        label: On the screen.
        about: What it is, in a line.
        choices: Words and what they mean, where only these are possible.
    """

    name: str
    label: str
    about: str
    choices: tuple[tuple[str, str], ...] = ()


SETTINGS = (
    Setting("name", "name", "What the adapter is called. Empty: after the data."),
    Setting(
        "method",
        "method",
        "What is trained.",
        (
            ("lora", "adapters: small matrices beside the model's own, which stay as they are"),
            ("dora", "adapters that also learn how large each row of weights is"),
            ("full", "every weight of the model; takes far more memory"),
        ),
    ),
    Setting("rank", "rank", "Of the adapters, 1 to 1024: how much they can learn. Empty: 16."),
    Setting("epochs", "epochs", "Passes over the data. Empty: by the data."),
    Setting("steps", "steps", "Updates, instead of passes. Empty: by the epochs."),
    Setting("learning_rate", "learning rate", "The highest, as 0.0002 or 2e-4. Empty: 0.0002."),
    Setting("max_length", "max length", "Tokens of a row; longer ones are cut. Empty: 2048."),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}
# What is found in the rows does not depend on these, nor what training takes on the last.
_NO_MATTER_FOR_ROWS = ("name", "method", "rank", "learning_rate", "skip_bad")
_NO_MATTER_FOR_PLAN = ("name", "learning_rate")


@dataclass(frozen=True)
class Setup:
    """What is chosen so far.

    Attributes:
        model: A model's name in the store, or empty.
        data: Files and directories.
        given: Settings that are not left to their defaults, by the recipe's names.
    """

    model: str = ""
    data: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether there is a model and data."""
        return bool(self.model and self.data)

    @property
    def skip_bad(self) -> bool:
        """Whether bad rows are left out."""
        return bool(self.given.get("skip_bad"))

    def recipe(self) -> Recipe:
        """The recipe.

        Raises:
            UsageError: It is not complete.
        """
        if not self.model:
            raise UsageError("There is no model to train.", "Choose one in the first line.")
        if not self.data:
            raise UsageError("There is nothing to train on.", "Choose your rows in the line `data`.")
        return make_recipe({"model": self.model, "data": self.data, **self.given})

    def with_text(self, name: str, text: str) -> "Setup":
        """The setup with a setting as it was written; empty text leaves it to its default.

        Raises:
            UsageError: It can be no such value.
        """
        given = {key: value for key, value in self.given.items() if key != name}
        if text.strip():
            wanted = _adapter_name(text) if name == "name" else text.strip()
            given[name] = getattr(make_recipe({"model": "m", "data": ["d"], name: wanted}), name)
            for other in {"epochs": ("steps",), "steps": ("epochs",)}.get(name, ()):
                given.pop(other, None)
        return replace(self, given=given)

    def with_skip_bad(self, *, skip: bool) -> "Setup":
        """The setup that leaves bad rows out, or stops at them."""
        return replace(self, given={**self.given, "skip_bad": skip})

    def text(self, name: str) -> str:
        """A setting as a person would write it; empty where it is left to its default."""
        value = self.given.get(name)
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    def same_rows(self, other: "Setup") -> bool:
        """Whether the same will be found in the rows."""
        return self._without(_NO_MATTER_FOR_ROWS) == other._without(_NO_MATTER_FOR_ROWS)

    def same_plan(self, other: "Setup") -> bool:
        """Whether training takes the same memory and time."""
        return self._without(_NO_MATTER_FOR_PLAN) == other._without(_NO_MATTER_FOR_PLAN)

    def _without(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        return self.model, self.data, {name: value for name, value in self.given.items() if name not in names}


def _adapter_name(text: str) -> str:
    """What the adapter will be called; training would find out only at its end that it cannot be."""
    name = parse_model_name(text)
    if name.variant:
        raise UsageError("An adapter's name has no colon.", "Leave out what stands behind it.")
    return name.name


def default_text(name: str) -> str:
    """What a setting is when nobody sets it; empty where that depends on the data."""
    value = Recipe.model_fields[name].default
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def setting(name: str) -> Setting:
    """A setting by its name in the recipe."""
    return _BY_NAME[name]


def settled(store: ModelStore, jobs: JobStore, setup: Setup) -> JobSpec:
    """The job that trains, as ``localllm finetune`` makes it; reads the disk.

    Raises:
        LocalLLMError: As :func:`finetune.jobs.train_spec` does; or a training that runs will take the name.
    """
    spec = train_spec(store, setup.recipe())
    if unfinished(jobs, spec) is not None:
        name = spec.arguments["recipe"]["name"]
        raise UsageError(f"A training called {name} is under way.", "Choose another name; t shows it.")
    return spec


def recipe_of(job: Job) -> dict[str, Any]:
    """What a training's job says of its recipe; empty where that is damaged."""
    recipe = job.spec.arguments.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def trainable(store: ModelStore) -> list[Manifest]:
    """The models that can be trained, as far as their names say; reads the disk."""
    from quant.architectures.registry import FAMILIES  # deferred: numpy, 100 ms

    unpackable = {family.architecture for family in FAMILIES}
    return [
        model
        for model in store.list()
        if model.architecture != "bert"
        and (model.format != "gguf" or not model.architecture or model.architecture in unpackable)
    ]


def save_recipe(setup: Setup, store: ModelStore, jobs: JobStore, path: Path) -> None:
    """Write what is set, with every default and the adapter's name, for ``localllm finetune PATH``.

    Raises:
        LocalLLMError: As :func:`settled` does; or the file cannot be written.
    """
    recipe = make_recipe(settled(store, jobs, setup).arguments["recipe"])
    try:
        write_recipe(path, recipe)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error


def discard(jobs: JobStore, job: Job) -> None:
    """End a job whose result nobody wants, and remove it; takes a moment."""
    with suppress(JobError):  # it has ended by itself, or is gone
        jobs.cancel(job, now=True)
    deadline = time.monotonic() + _END_SECONDS
    while job.alive and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    with suppress(JobError):
        jobs.remove(job)


def chat_name(store: ModelStore, made: str, model: str) -> str:
    """What the chat calls what was trained; reads the disk.

    Args:
        store: Has the models.
        made: What the training made: an adapter's name, or after full training a model's.
        model: The model that was trained; it carries the adapter if it can.

    Raises:
        LocalLLMError: No model is here that can.
    """
    if ":" in made:
        return made
    adapter = AdapterStore(store.home).resolve(made)
    fitting = [other for other in store.list() if adapter.is_for(other)]
    if not fitting:
        raise UsageError(f"The model of +{adapter.name} is not here in a form that fits.", f"Pull {adapter.base}.")
    chosen = next((other for other in fitting if str(other.model_name) == model), fitting[0])
    return f"{chosen.model_name}+{adapter.name}"
