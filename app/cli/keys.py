"""``localllm keys [ls|add|rm]``: who may use the server, and for what."""

import argparse
import json
import sys
from dataclasses import asdict

from app.cli.output import print_table
from localllm.api_keys import DEFAULT_SCOPES, SCOPES, KeyStore
from localllm.paths import Home

_SCOPES = "scopes:\n" + "\n".join(f"  {name:8} {text}" for name, text in SCOPES.items())
_EXAMPLES = f"""examples:
  localllm keys add notebook                       for answers, embeddings and the list of models
  localllm keys add grafana --scope metrics        for the metrics and nothing else
  localllm keys rm notebook                        refused from now on, by a server that runs too

{_SCOPES}
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments; without one, the keys are listed."""
    parser.description = (
        "API keys for `localllm serve`. Once there is one, every request needs a key. A key is shown when it is made "
        "and never again: what is kept of it is a SHA-256."
    )
    parser.epilog = _EXAMPLES
    parser.set_defaults(json=False)
    _add_json(parser)
    commands = parser.add_subparsers(dest="action", metavar="{ls,add,rm}")
    listing = commands.add_parser("ls", help="names and scopes of the keys (the default)", allow_abbrev=False)
    _add_json(listing)
    add = commands.add_parser("add", help="make a key and print it", allow_abbrev=False)
    add.add_argument("name", metavar="NAME", help="what or who it is for")
    add.add_argument(
        "--scope",
        action="append",
        choices=tuple(SCOPES),
        help=f"what it may be used for, may be repeated ({', '.join(DEFAULT_SCOPES)})",
    )
    remove = commands.add_parser("rm", help="refuse a key from now on", allow_abbrev=False)
    remove.add_argument("name", metavar="NAME", help="its name")


def run(args: argparse.Namespace, home: Home) -> int:
    """Run the chosen subcommand."""
    store = KeyStore(home)
    match args.action:
        case "add":
            print(store.add(args.name, args.scope or DEFAULT_SCOPES))
            print("This is the only time it is shown. Send it as `Authorization: Bearer KEY`.", file=sys.stderr)
        case "rm":
            left = store.remove(args.name)
            print(f"{args.name}  removed")
            if not left:
                print("No key is left: the next `localllm serve` asks for none on this machine.", file=sys.stderr)
        case _:
            _list(store, as_json=args.json)
    return 0


def _add_json(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a subparser's default must not undo the flag given before the subcommand.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _list(store: KeyStore, *, as_json: bool) -> None:
    keys = store.list()
    if as_json:
        # The digest is nobody's business here.
        shown = [{name: value for name, value in asdict(key).items() if name != "sha256"} for key in keys]
        print(json.dumps(shown, ensure_ascii=False))
    elif keys:
        print_table(("NAME", "SCOPES", "MADE"), [(key.name, ", ".join(key.scopes), key.created) for key in keys])
    else:
        print("No key is here. Make one with: localllm keys add NAME", file=sys.stderr)
