"""The process that fetches a data set for :mod:`finetune.data.hub`.

python -P -m finetune.data.hub_worker
"""

from pathlib import Path
from typing import Any

from localllm.models.sources.hub_rows import HubRows, fetch_rows
from localllm.models.transfer import PullProgress
from localllm.paths import Home
from quant.child import Progress
from quant.child_side import answer


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Fetch ``text`` into ``home``, at ``commit`` where one is given."""
    wanted = HubRows.parse(request["text"])
    assert wanted is not None, "the parent has parsed it"

    def report(now: PullProgress) -> None:
        progress(f"{now.stage} {now.file}", now.done, now.total)

    found = fetch_rows(wanted, Home(Path(request["home"])), report, commit=request["commit"])
    files = [(str(path), part) for path, part in found.files]
    return {"files": files, "commit": found.commit, "note": found.note}


if __name__ == "__main__":
    answer(work)
