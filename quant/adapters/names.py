"""What the modules of a model are called in MLX, in PEFT and in GGUF, by its family's table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localllm.errors import InvalidModelError
from localllm.model_directory import read_model_config
from localllm.sanitize import one_line
from quant.architectures.config import config_of, flatten_config, impossible_settings, with_defaults
from quant.architectures.family import Config, Family, Rule, Transform
from quant.architectures.plan import Heads, renamed, steps
from quant.architectures.registry import family_of_config, family_of_metadata
from quant.tensors.gguf_reader import GGUFSource
from quant.tensors.rows import TensorPlan, read_plan
from quant.tensors.source import Array, TensorInfo

EMBEDDING = "token_embd"


@dataclass(frozen=True)
class Module:
    """A module that holds a matrix, or a stack of them.

    Attributes:
        name: In MLX.
        gguf: In GGUF, without ``.weight``.
        rule: Of the family's table.
        layer: Its block's number; None outside of the blocks.
        experts: The names of a mixture's matrices in PEFT, where each is a module; empty otherwise.
    """

    name: str
    gguf: str
    rule: Rule
    layer: int | None
    experts: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name inside its block, as mlx-lm's ``keys`` have it; the whole name outside."""
        template = self.rule.stacked or self.rule.hf
        return self.name if self.layer is None else template.partition("{}.")[2]


class Modules:
    """The modules of one model.

    Args:
        family: Its family.
        config: From :func:`.config.flatten_config` or :func:`.config.config_of`.
        tied: Its output is its input embedding.

    Attributes:
        architecture: GGUF's name of it.
        n_layer: Its blocks.
        tied: As given.
    """

    def __init__(self, family: Family, config: Config, *, tied: bool) -> None:
        self._family = family
        with impossible_settings("config.json"):
            self._heads = Heads.of(family, config)
            self._shapes = self._heads.sizes(family, config).by_module
        self.architecture = family.architecture
        self.n_layer = self._heads.n_layer
        self.tied = tied
        found = [_module(rule, layer, self._heads.n_expert) for rule, layer in steps(family, config, self.n_layer)]
        self._by_name = {module.name: module for module in found}
        self._by_gguf = {module.gguf: module for module in found}
        self._by_expert = {name: (module, n) for module in found for n, name in enumerate(module.experts)}

    @classmethod
    def of_model(cls, path: Path) -> "Modules":
        """Of a model: a directory with config.json, or a GGUF file.

        Raises:
            InvalidModelError: It is damaged, or of a family that cannot be converted.
        """
        if path.is_dir():
            config = flatten_config(read_model_config(path / "config.json"))
            family = family_of_config(config)
            config = with_defaults(family, config)
            return cls(family, config, tied=bool(config.get("tie_word_embeddings", family.tied)))
        with GGUFSource(path) as source:
            family = family_of_metadata(source.metadata)
            config = config_of(family, source.metadata, source)
            return cls(family, config, tied="output.weight" not in source.tensors)

    def named(self, name: str) -> Module:
        """The module that MLX calls ``name``.

        Raises:
            InvalidModelError: GGUF has none of the kind.
        """
        return self._known(self._by_name.get(renamed(self._family, name)), name)

    def in_gguf(self, name: str) -> Module:
        """The module that GGUF calls ``name``, likewise."""
        return self._known(self._by_gguf.get(name), name)

    def in_peft(self, name: str) -> tuple[Module, int | None]:
        """The module that PEFT calls ``name``, and the expert's number where it is one of a stack, likewise."""
        own = renamed(self._family, name)
        if own in self._by_expert:
            return self._by_expert[own]
        return self._known(self._by_name.get(own), name), None

    def _known(self, module: Module | None, name: str) -> Module:
        if module is None:
            raise InvalidModelError(
                f"The adapter changes {one_line(name, 80)}, which has no counterpart in other forms of a "
                f"{self.architecture} model.",
                "Train it without that module.",
            )
        return module

    def check_fits(self, module: Module, a: Array, b: Array) -> None:
        """Refuse a pair that is for a model of another size.

        Args:
            module: What it changes.
            a: As :class:`.lora.LoraPair` has it.
            b: Likewise.

        Raises:
            InvalidModelError: The module has other inputs or outputs.
        """
        *_, outputs, inputs = self._shapes.get(module.gguf.rpartition(".")[2], (0, 0))
        if module.gguf == EMBEDDING:  # its inputs are tokens, and its rows
            outputs, inputs = inputs, outputs
        if inputs not in (0, a.shape[-1]) or outputs not in (0, b.shape[-2]):
            raise InvalidModelError(
                f"The adapter does not fit the model: its {one_line(module.name, 80)} takes {a.shape[-1]} numbers and "
                f"gives {b.shape[-2]}; the model's takes {inputs or 'any'} and gives {outputs or 'any'}.",
                "Name the model that it was made for.",
            )

    def to_gguf_rows(self, module: Module, rows: Array) -> Array:
        """A module's output rows (outputs, ...) in GGUF's order."""
        return np.ascontiguousarray(rows[self._order(module, len(rows))])

    def to_hf_rows(self, module: Module, rows: Array) -> Array:
        """The reverse."""
        return np.ascontiguousarray(rows[np.argsort(self._order(module, len(rows)))])

    def _order(self, module: Module, n_rows: int) -> Array:
        """The number of the row of Hugging Face's that is GGUF's first, second and so on."""
        numbers = _Numbers(module.name, n_rows)
        pieces = self._heads.gguf_rows(module.rule, numbers.tensors[module.name])
        plan = TensorPlan(module.name, (n_rows, 1), pieces)
        return np.concatenate([np.array(rows) for rows, _ in read_plan(plan, numbers)])[:, 0]


def _module(rule: Rule, layer: int, n_expert: int) -> Module:
    inside = layer if "{}" in rule.gguf else None
    gguf = rule.gguf.format(layer)
    if rule.transform is not Transform.EXPERTS:
        return Module(rule.hf.format(layer), gguf, rule, inside, ())
    experts = tuple(rule.hf.format(layer, expert=expert) for expert in range(n_expert))
    return Module(rule.stacked.format(layer), gguf, rule, inside, experts)


class _Numbers:
    """A tensor whose rows are their own numbers: what is done to it says where rows go."""

    def __init__(self, name: str, n_rows: int) -> None:
        self._rows = np.arange(n_rows, dtype=np.int32)[:, None]
        self.tensors = {name: TensorInfo(name, "I32", (n_rows, 1))}

    def read_rows(self, _name: str, start: int, stop: int) -> Array:
        """See :meth:`.source.TensorSource.read_rows`."""
        return self._rows[start:stop]
