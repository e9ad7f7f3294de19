"""``localllm jobs``: what long work runs, what ended and how."""

import argparse
import json
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import Any

from app.cli.follow_job import follow, show_result
from app.cli.output import human_seconds, print_table
from localllm.errors import JobError, UsageError
from localllm.jobs.job import Job
from localllm.jobs.record import JobStatus
from localllm.jobs.store import JobStore
from localllm.paths import Home
from localllm.sanitize import one_line, printable

_TITLE = 48
_LAST_LINES = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments; without one, the jobs are listed."""
    parser.description = (
        "Long work (pull, quantize, finetune) runs in processes of its own: closing a terminal or the app ends none of "
        "them. Without a word after it, the jobs are listed. ID is an id, the beginning of one, or its last letters."
    )
    parser.set_defaults(json=False)
    _add_json(parser)
    words = "{list,watch,show,log,cancel,resume,rm}"
    commands = parser.add_subparsers(dest="action", metavar=words)
    _add_json(commands.add_parser("list", help="what runs and what ended (the default)", allow_abbrev=False))
    watch = commands.add_parser("watch", help="follow a job; Ctrl-C leaves, and the job goes on", allow_abbrev=False)
    watch.add_argument("job", metavar="ID", nargs="?", help="the newest that runs, without it")
    show = commands.add_parser("show", help="everything known about a job", allow_abbrev=False)
    show.add_argument("job", metavar="ID")
    _add_json(show)
    log = commands.add_parser("log", help="the end of what a job's process wrote", allow_abbrev=False)
    log.add_argument("job", metavar="ID")
    log.add_argument("-n", "--lines", type=int, default=_LAST_LINES, help=f"this many ({_LAST_LINES}); 0 for all")
    cancel = commands.add_parser(
        "cancel", help="let jobs save what they have and end; a second time kills them", allow_abbrev=False
    )
    cancel.add_argument("jobs", metavar="ID", nargs="+")
    cancel.add_argument("--now", action="store_true", help="kill them at once; nothing is saved")
    resume = commands.add_parser("resume", help="go on with a job that did not end well", allow_abbrev=False)
    resume.add_argument("job", metavar="ID")
    resume.add_argument("--detach", action="store_true", help="do not follow it")
    remove = commands.add_parser("rm", help="delete jobs that have ended, and their logs", allow_abbrev=False)
    remove.add_argument("jobs", metavar="ID", nargs="*")
    remove.add_argument("--ended", action="store_true", help="all that have ended")


def run(args: argparse.Namespace, home: Home) -> int:
    """Run the chosen subcommand."""
    store = JobStore(home)
    match args.action:
        case "watch":
            return _watch(store, args.job)
        case "show":
            return _show(store.get(args.job), as_json=args.json)
        case "log":
            return _log(store.get(args.job), args.lines)
        case "cancel":
            return _cancel(store, args.jobs, now=args.now)
        case "resume":
            return _resume(store, store.get(args.job), detach=args.detach)
        case "rm":
            return _remove(store, args.jobs, ended=args.ended)
        case _:
            return _list(store, as_json=args.json)


def _add_json(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a subparser's default must not undo the flag given before the subcommand.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _list(store: JobStore, *, as_json: bool) -> int:
    jobs = store.list()
    if as_json:
        print(json.dumps([_record(job) for job in jobs], ensure_ascii=False))
    elif jobs:
        rows = [_row(job, _status(job)) for job in reversed(jobs)]
        print_table(("ID", "KIND", "TITLE", "STATE", "DONE", "STARTED", "TOOK"), rows, right=(4, 6))
    else:
        print("There are no jobs. Long commands, like pull, are jobs while they run and after.", file=sys.stderr)
    return 0


def _row(job: Job, status: JobStatus) -> tuple[str, ...]:
    share = None if status.state == "done" else job.latest().share
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.started)) if status.started else "-"
    return (
        job.id,
        job.spec.kind,
        one_line(job.spec.title, _TITLE),
        one_line(f"{status.state} {status.detail}", _TITLE),
        "-" if share is None else f"{share:.0%}",
        started,
        took(status) or "-",
    )


def took(status: JobStatus) -> str:
    """How long a job has run, or ran; empty when that is not known."""
    if not status.started or status.state == "dead":
        return ""
    return human_seconds((status.ended or time.time()) - status.started)


def _status(job: Job) -> JobStatus:
    """The status; one that cannot be read is told of, so that the others are still listed."""
    try:
        return job.status()
    except JobError as error:
        return JobStatus("dead", message=error.message, hint=error.hint)


def _record(job: Job) -> dict[str, Any]:
    latest = job.latest()
    return {
        "id": job.id,
        **asdict(job.spec),
        "created": job.created,
        "alive": job.alive,
        **asdict(_status(job)),
        "share": latest.share,
        "latest": {name: value for name, value in asdict(latest).items() if value is not None},
        "directory": str(job.directory),
    }


def _watch(store: JobStore, text: str | None) -> int:
    if text is None:
        running = [job for job in store.list() if not _status(job).has_ended]
        if not running:
            raise JobError("No job runs.", "`localllm jobs` lists those that have ended.")
        job = running[-1]
        print(f"{job.id}  {job.spec.kind}  {one_line(job.spec.title)}", file=sys.stderr)
    else:
        job = store.get(text)
    # Ctrl-C leaves, whatever it does where the job was started: watching is only watching.
    return follow(job, may_cancel=False)


def _show(job: Job, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(_record(job), indent=2, ensure_ascii=False))
        return 0
    status = _status(job)
    latest = job.latest()
    facts = [
        ("id", job.id),
        ("kind", job.spec.kind),
        ("title", job.spec.title),
        ("state", f"{status.state} {status.detail}"),
        ("done", "" if latest.share is None else f"{latest.share:.0%}"),
        ("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created))),
        ("took", took(status)),
        ("error", f"{status.message} {status.hint}"),
        ("process", str(status.pid) if job.alive else ""),
        ("kept in", str(job.directory)),
        *((f"  {name}", json.dumps(value, ensure_ascii=False)) for name, value in job.spec.arguments.items()),
    ]
    for name, value in facts:
        if value.strip():
            print(f"{one_line(name) if name.strip() == name else '  ' + one_line(name):13} {one_line(value)}")
    if status.state == "done":
        show_result(status.result)
    return 0


def _log(job: Job, n_lines: int) -> int:
    if n_lines < 0:
        raise UsageError(f"There are no {n_lines} lines.", "-n takes how many, or 0 for all.")
    if not job.log_path.exists():
        return 0
    with job.log_path.open(encoding="utf-8", errors="replace") as handle:
        for line in deque(handle, maxlen=n_lines or None):
            print(printable(line), end="")
    return 0


def _cancel(store: JobStore, texts: list[str], *, now: bool) -> int:
    # Named twice, it is still asked only once: asked again it would be killed.
    for job in {job.id: job for job in map(store.get, texts)}.values():
        again = job.cancel_path.exists()
        store.cancel(job, now=now)
        print(f"{job.id}  {'killed' if now or again else 'asked to save and end; a second cancel kills it'}")
    return 0


def _resume(store: JobStore, job: Job, *, detach: bool) -> int:
    offset = job.events_end()
    store.resume(job)
    if detach:
        print(f"{job.id}  runs again")
        return 0
    return follow(job, offset=offset)


def _remove(store: JobStore, texts: list[str], *, ended: bool) -> int:
    found = [store.find(text) for text in texts]
    if ended:
        found += [job.directory for job in store.list() if _status(job).has_ended]
    elif not found:
        raise JobError("No job was named.", "Give an id, or --ended for all that have ended.")
    for directory in dict.fromkeys(found):
        store.remove_directory(directory)
        print(f"{directory.name}  removed")
    return 0
