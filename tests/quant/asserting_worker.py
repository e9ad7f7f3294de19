"""A child that ends as ggml does when an assert fails."""

import os
import sys
from typing import Any

from quant.child_side import answer
from quant.llama_quantize_worker import work as plan


def work(request: dict[str, Any], progress: Any) -> dict[str, Any]:
    if request["options"].get("dry_run"):
        return plan(request, progress)
    print("ggml.c:42: GGML_ASSERT(imatrix != NULL) failed", file=sys.stderr, flush=True)
    os.abort()


if __name__ == "__main__":
    answer(work)
