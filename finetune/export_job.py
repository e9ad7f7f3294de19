"""What ``localllm models export BASE+ADAPTER`` does, as a job: fused, converted, checked, registered."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from finetune.base_model import in_mlx_form
from localllm.adapters import AdapterManifest, AdapterStore, split_name
from localllm.errors import UsageError
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.jobs.record import JobSpec
from localllm.machine import read_machine
from localllm.memory import machine_memory
from localllm.mlx_setup import prepare_process
from localllm.models.manifest import Manifest
from localllm.models.names import ModelName, parse_model_name
from localllm.models.register import Making, named, register, require_free
from localllm.models.store import ModelStore
from localllm.settings import load_settings
from quant.convert import from_gguf, to_gguf
from quant.forms import Form
from quant.llama_quantize import quantize_gguf
from quant.llama_types import find_file_type
from quant.lora import complete_adapter

_PLAIN = ("f16", "bf16", "f32")
_UNQUANTIZED = (*_PLAIN, "q8_0")
_EXACT_BELOW = 1_000_000_000  # parameters; of larger models F16 is precise enough to quantize from


def parse_fused_form(text: str) -> Form:
    """``mlx[:TYPE]``, ``mlx:4bit`` (as the base is packed), ``hf[:TYPE]``, ``gguf:TYPE``, or a type of llama.cpp's.

    Raises:
        UsageError: There is no such form.
    """
    kind, _, wanted = text.strip().lower().partition(":")
    if kind in ("mlx", "hf"):
        packed = kind == "mlx" and wanted.endswith("bit") and wanted.removesuffix("bit").isdecimal()
        if wanted and wanted not in _PLAIN and not packed:
            raise UsageError(f"{kind} models have no type {wanted!r}.", f"Choose from {', '.join(_PLAIN)}.")
        return Form(kind, wanted or "f16")
    return Form("gguf", find_file_type(wanted or ("f16" if kind == "gguf" else kind)).name)


def export_spec(
    store: ModelStore, model: str, form: str, as_name: str = "", *, ignore_gate: bool = False
) -> tuple[JobSpec, Manifest | None]:
    """The job that exports ``base+adapter``; and the result, where it is here already.

    Raises:
        ModelNotFoundError: The model or the adapter is not here.
        UsageError: The form or a name is none, or there are several adapters.
        StoreError: The result's name is taken.
    """
    base_name, adapters = split_name(model)
    if len(adapters) != 1:
        raise UsageError("One adapter at a time can be exported.", "Name it as BASE+ADAPTER.")
    base, adapter = store.resolve(base_name), AdapterStore(store.home).resolve(adapters[0])
    wanted = parse_fused_form(form)
    packed = base.quantization.replace("-", "") if base.format == "mlx" else ""
    if wanted.type.endswith("bit") and wanted.type != packed:  # it is packed again as it was
        raise UsageError(
            f"The weights of {base.model_name} are {f'of {packed}' if packed else 'not packed'}, not of {wanted.type}.",
            f"Export it as mlx:{packed or 'f16'}; `localllm quantize` packs a model.",
        )
    default = ModelName(f"{base.name}-{adapter.name}", wanted.variant)
    name = named(base, wanted.variant, parse_model_name(as_name)) if as_name else default
    arguments = {
        "model": str(base.model_name),
        "adapter": adapter.name,
        "form": str(wanted),
        "name": str(name),
        "ignore_gate": ignore_gate,
    }
    spec = JobSpec("export", f"{base.model_name}+{adapter.name} to {wanted}", "finetune.export_job:export", arguments)
    return spec, require_free(store, _making(store, adapter, arguments))


def export(context: JobContext) -> dict[str, Any]:
    """Export a model with its adapter; the result holds ``name``, ``manifest``, ``gate`` and a ``summary``."""
    settings = load_settings(context.home.settings_file)
    prepare_process(settings.threads, cpu=settings.gpu_layers == 0)
    store = ModelStore(context.home)
    adapters = AdapterStore(context.home)
    adapter = adapters.resolve(context.arguments["adapter"])
    if "mlx" not in adapter.forms:
        adapter = complete_adapter(adapters, store, adapter)
    making = _making(store, adapter, context.arguments)
    verdicts: list[dict[str, Any]] = []
    found = require_free(store, making)
    if found is None:
        model = in_mlx_form(store, making.parent, context)
        key = store.workspace.key(f"make {making.name}")
        waits = partial(context.emit, Message("info", f"Another process makes {making.name}: waiting for it."))
        with context.interruptible(), store.workspace.exclusive(key, waits) as work:
            try:
                result = _Export(context, store, adapters, model, adapter, making, work).run(verdicts)
                found = require_free(store, making) or register(store, result, making)
            finally:
                store.workspace.discard(work)
    summary = f"{found.model_name}  {found.size:,} bytes"
    return {"name": str(found.model_name), "manifest": asdict(found), "gate": verdicts, "summary": summary}


def _making(store: ModelStore, adapter: AdapterManifest, arguments: dict[str, Any]) -> Making:
    base, name, form = store.resolve(arguments["model"]), parse_model_name(arguments["name"]), arguments["form"]
    how = f"models export {base.model_name}+{adapter.name} --to {form} --as {name}"
    recipe = {"form": form, "adapter": adapter.name, "adapter_created": adapter.created, "gate": "checked"}
    if arguments["ignore_gate"]:
        how, recipe = f"{how} --ignore-gate", {**recipe, "gate": "ignored"}
    return Making(name, base, how, recipe)


class _Export:
    """One export in its directory under ``partial/``."""

    def __init__(
        self,
        context: JobContext,
        store: ModelStore,
        adapters: AdapterStore,
        model: Manifest,
        adapter: AdapterManifest,
        making: Making,
        work: Path,
    ) -> None:
        self._context, self._store, self._adapters = context, store, adapters
        self._model, self._adapter, self._making, self._work = model, adapter, making, work
        self._base = store.file(model).parent

    def run(self, verdicts: list[dict[str, Any]]) -> Path:
        """Fuse, convert and check; the directory to be registered.

        Raises:
            GateError: It does not predict what was trained.
        """
        # Deferred: mlx binds its BLAS as it is imported, so what imports it comes after prepare_process.
        from finetune.data.formatter import ChatFormatter
        from finetune.gate import HEADER, Engine, Gate, explain, refuse
        from finetune.gate_limits import limits_for, limits_for_adapter
        from finetune.gate_rows import gate_rows
        from finetune.tokenizer import load_tokenizer

        context, making = self._context, self._making
        form = Form(*context.arguments["form"].split(":"))
        target, plain = self._make(form)
        tokenizer = load_tokenizer(self._store, self._model)
        rows = gate_rows(self._adapters.directory(self._adapter), ChatFormatter(tokenizer))
        settings = load_settings(context.home.settings_file)
        widen = 8 * self._model.parameters <= machine_memory(settings.memory_gb).budget
        threads = settings.threads or read_machine().performance_cores
        engine = Engine(threads, cpu=settings.gpu_layers == 0, widen=widen)
        gate = Gate(rows, self._work, engine, self._telling("check"), context.check_cancelled)
        gate.keep_reference(self._base, self._adapters.path(self._adapter, "mlx"))
        self._say(f"Checked on {len(rows.rows)} {rows.source}, {rows.n_predictions} predictions.")
        found = [gate.compare(f"fused {kind}", path, limits_for(kind)) for kind, path in plain.items()]
        loaded = next(target.glob("*.gguf")) if form.kind == "gguf" else target
        found.append(gate.compare(str(form), loaded, limits_for(form.type)))
        base = making.parent
        if base.format == "gguf" and "gguf" in self._adapter.forms:
            lora, limits = self._adapters.path(self._adapter, "gguf"), limits_for_adapter(base.quantization)
            beside = gate.compare("base + adapter", self._store.file(base), limits, lora)
        else:
            beside = None
        self._say(HEADER)
        for verdict in [*found, *([beside] if beside else [])]:
            self._say(verdict.line())
            verdicts.append(verdict.record())
            if verdict.difference and not verdict.passes:
                self._say(explain(verdict.difference, rows, tokenizer.decode))
        over = [verdict for verdict in found if not verdict.passes]
        if over and not context.arguments["ignore_gate"]:
            raise refuse(over[-1], str(making.name), f"{base.model_name}+{self._adapter.name}")
        return target

    def _make(self, form: Form) -> tuple[Path, dict[str, Path]]:
        """The export's directory; and by its type the plain file that it was quantized from, where there is one."""
        from finetune.fuse import fuse  # deferred, as above

        target, check = self._work / "model", self._context.check_cancelled
        exact = "f32" if self._model.parameters < _EXACT_BELOW else "f16"
        dtype = form.type if form.type in _PLAIN else exact
        requantize = form.type.endswith("bit")
        fused = self._work / "fused"
        adapter = self._adapters.path(self._adapter, "mlx")
        telling = self._telling("fuse")
        found = fuse(
            self._base,
            adapter,
            fused,
            dtype=None if requantize else dtype,
            requantize=requantize,
            progress=telling,
            check_cancelled=check,
        )
        self._say(found.line())
        convert = self._telling("convert")
        name = self._making.name.name
        if form.kind == "mlx" or (form.kind == "hf" and not found.stacked):
            return fused, {}
        if form.kind == "hf":  # a mixture's experts are one by one there, and rows of one stack here
            file = to_gguf(fused, self._work / "plain.gguf", type=dtype, name=name, check_cancelled=check)[0]
            from_gguf(file, target, dtype=dtype, progress=convert, check_cancelled=check)
            return target, {}
        target.mkdir()
        final = target / f"{name}-{form.type}.gguf"
        if form.type in _UNQUANTIZED:
            to_gguf(fused, final, type=form.type, name=name, progress=convert, check_cancelled=check)
            return target, {}
        file = to_gguf(fused, self._work / "plain.gguf", type=dtype, name=name, check_cancelled=check)[0]
        made = quantize_gguf(file, final, form.type, progress=convert, check_cancelled=check)
        for warning in made.plan.warnings:
            self._context.emit(Message("warning", warning))
        return target, {dtype: file}

    def _say(self, text: str) -> None:
        self._context.emit(Message("info", text))

    def _telling(self, stage: str) -> Any:
        return lambda _item, done, total: self._context.emit(Progress(stage, done, total))
