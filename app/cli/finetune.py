"""``localllm finetune``: train an adapter on your own rows."""

import argparse
from pathlib import Path
from typing import Any

from app.cli.follow_job import run_job
from localllm.errors import UsageError
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.typed_paths import is_there

_RECIPE_SUFFIXES = (".yaml", ".yml")

_EXAMPLES = """examples:
  localllm finetune smollm2-135m --data my_chats.jsonl        everything else has a good default
  localllm finetune smollm2-135m --data my_chats.jsonl --check  look at the rows, train nothing
  localllm finetune recipes/sft.yaml                          the same, written down

Rows are chats (messages), prompt and completion, instruction and output, ShareGPT conversations, or text; in JSONL,
JSON, CSV or Parquet files, or directories of them. ORG/NAME[/CONFIG][:SPLIT][@REVISION], where there is no such file,
is a data set of the Hugging Face hub: it is fetched once, and nothing else is asked of a network.
With --ranks or --hosts several processes train together, started by MLX's own mlx.launch.
Ctrl-C leaves the training; it goes on, and `localllm jobs watch` shows it again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = "Train an adapter (LoRA, DoRA) or the whole model on your own rows."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL|RECIPE.yaml", help="a model that is here, or a recipe")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="files, directories, or ORG/NAME")
    parser.add_argument("--as", dest="name", metavar="NAME", help="the adapter's name (default: after the data)")
    parser.add_argument("--check", action="store_true", help="look at the rows and what training needs; train nothing")
    parser.add_argument("--method", choices=("lora", "dora", "full"), help="what is trained (lora)")
    parser.add_argument("--rank", type=int, help="rank of the adapters (16)")
    parser.add_argument("--alpha", type=float, help="their scale is alpha / rank (32)")
    parser.add_argument("--dropout", type=float, help="on the adapters' input (0)")
    parser.add_argument("--targets", nargs="+", metavar="LAYER", help="layers with an adapter: q_proj v_proj … (all)")
    parser.add_argument("--layers", type=int, metavar="N", help="only the last N blocks (all)")
    parser.add_argument("--train-on", choices=("assistant", "all"), help="which turns of a chat are learnt (assistant)")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="longer rows are cut (2048)")
    parser.add_argument("--batch-tokens", type=int, metavar="TOKENS", help="tokens of an update (by the data)")
    parser.add_argument("--epochs", type=float, help="passes over the data (by the data)")
    parser.add_argument("--steps", type=int, help="updates, instead of passes")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="highest learning rate (0.0002)")
    parser.add_argument("--seed", type=int, help="of everything random (0)")
    parser.add_argument("--skip-bad", action="store_true", default=None, help="leave bad rows out, and name them")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes here that train together (1)")
    parser.add_argument(
        "--hosts", default="", metavar="FILE", help="machines that train together: as mlx.launch has it"
    )
    parser.add_argument("--detach", action="store_true", help="print the job's id and return at once")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(args: argparse.Namespace, home: Home) -> int:
    """Check, or train."""
    # Deferred: pydantic and YAML, 60 ms.
    from finetune.recipe import make_recipe, read_recipe

    given = _given(args)
    if args.model.endswith(_RECIPE_SUFFIXES):
        recipe = read_recipe(Path(args.model))
        recipe = make_recipe({**recipe.model_dump(), **given})
    elif not args.data:
        raise UsageError("There is nothing to train on.", "Give your rows with --data FILE.")
    else:
        recipe = make_recipe({"model": args.model, **given})
    absolute = tuple(str(Path(item).absolute()) if is_there(item) else item for item in recipe.data)
    recipe = recipe.model_copy(update={"data": absolute})  # the job runs in another directory
    if args.check:
        from app.cli.finetune_check import run_check

        return run_check(recipe, home, as_json=args.json)
    from finetune.jobs import train_spec, unfinished

    hosts = str(Path(args.hosts).absolute()) if args.hosts else ""
    spec = train_spec(ModelStore(home), recipe, ranks=args.ranks, hosts=hosts)
    if (other := unfinished(JobStore(home), spec)) is not None:
        name = spec.arguments["recipe"]["name"]
        raise UsageError(
            f"A training called {name} is under way: job {other.id}.",
            f"Choose another name with --as, or end that one: localllm jobs cancel {other.id}",
        )
    return run_job(home, spec, detach=args.detach, show=_show_json if args.json else None)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says, by the recipe's names."""
    names = (
        "name", "method", "rank", "alpha", "dropout", "targets", "layers", "train_on", "max_length", "batch_tokens",
        "epochs", "steps", "learning_rate", "seed", "skip_bad",
    )  # fmt: skip
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.epochs is not None:
        given.setdefault("steps", None)  # a recipe's, which would be taken instead of them
    return {**given, "data": args.data} if args.data else given


def _show_json(result: dict[str, Any]) -> None:
    import json

    print(json.dumps(result, indent=2))
