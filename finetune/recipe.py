"""A recipe: everything that a run is a function of, beside the data and the weights themselves.

Read from YAML, made from the command line's options, and written beside the adapter with every default resolved.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from localllm.errors import UsageError
from localllm.files import write_atomic
from localllm.models.names import ModelName
from localllm.typed_paths import is_there

Method = Literal["lora", "dora", "full"]
OptimizerName = Literal["adamw", "adam", "sgd", "adafactor", "lion", "muon"]
Checkpointing = Literal["auto", "none", "alternate", "all"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel):
    """What to train and how. None means: chosen from the data and the machine, and written down once it is.

    Attributes:
        model: A model's name in the store.
        data: Files or directories.
        name: The adapter's name; from the first data file when None. Full training makes a model, MODEL-NAME.
        method: ``lora`` (also on 4-bit bases), ``dora`` or ``full``.
        rank: r of the adapters.
        alpha: Their output is scaled by alpha / r.
        dropout: On the adapters' input.
        targets: Ends of the names of the linear layers that get an adapter; ``all`` is every one in the blocks.
        layers: Only the last so many blocks; None is all.
        train_on: Which turns of a chat are learnt.
        max_length: Tokens; longer rows are cut at the end, and counted.
        packing: Several rows in one row of a batch; None is wherever the model can.
        batch_tokens: Positions of an update.
        micro_tokens: Positions of one forward pass; an update is accumulated from several.
        epochs: Passes over the data.
        steps: Updates; instead of epochs.
        optimizer, learning_rate, weight_decay, betas, max_grad_norm: As everywhere; Adam corrects its bias.
        schedule: After the warm-up.
        warmup: Share of the updates.
        checkpointing: Blocks that are computed again in the backward pass, to save memory.
        valid_fraction: Share of the rows held out, by a hash of their content.
        eval_every: Updates between evaluations.
        save_every: Updates between checkpoints.
        patience: Evaluations without a better one before the run stops; 0 never stops it.
        samples: Answers generated at each evaluation.
        seed: Of everything random.
        skip_bad: Leave bad rows out instead of refusing the data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    data: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    name: str | None = None
    method: Method = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = ("all",)
    layers: Annotated[int | None, Field(ge=1)] = None
    train_on: Literal["assistant", "all"] = "assistant"
    max_length: Annotated[int, Field(ge=8)] = 2048
    packing: bool | None = None
    batch_tokens: Annotated[int | None, Field(ge=8)] = None
    micro_tokens: Annotated[int | None, Field(ge=8)] = None
    epochs: Annotated[float | None, Field(gt=0)] = None
    steps: Annotated[int | None, Field(ge=1)] = None
    optimizer: OptimizerName = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    checkpointing: Checkpointing = "auto"
    valid_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    eval_every: Annotated[int | None, Field(ge=1)] = None
    save_every: Annotated[int | None, Field(ge=1)] = None
    patience: Annotated[int, Field(ge=0)] = 3
    samples: Annotated[int, Field(ge=0, le=16)] = 2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    skip_bad: bool = False

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return self.alpha / self.rank


def whole_name(base: str, recipe: Recipe) -> ModelName:
    """What the model is called that full training makes of the one called ``base``."""
    return ModelName(f"{base}-{recipe.name}", "mlx")


def make_recipe(fields: dict[str, object]) -> Recipe:
    """A recipe from names and values.

    Raises:
        UsageError: A name or a value is wrong; says which.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"The recipe's {name or 'content'} is wrong: {first['msg'].lower()}.") from None


def read_recipe(path: Path) -> Recipe:
    """A recipe from a YAML file; data files are looked up beside it.

    Raises:
        UsageError: It cannot be read, or is no recipe.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        raise UsageError(f"The recipe {path} cannot be read: {str(error).splitlines()[0]}.") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path} is no recipe.", "A recipe is a list of `name: value` lines, beginning with `model:`.")
    data = fields.get("data")
    given = [data] if isinstance(data, str) else data
    if isinstance(given, list):
        fields["data"] = [_beside(path.parent, item) for item in given]
    return make_recipe(fields)


def _beside(directory: Path, item: object) -> object:
    """A data file beside the recipe; whatever else is named, as it is."""
    return str(directory / item) if isinstance(item, str) and item and is_there(directory / item) else item


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write every field, defaults included.

    Raises:
        DiskFullError: There is no room; ``path`` is as it was.
    """
    write_atomic(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
