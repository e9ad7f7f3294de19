"""A child that ends as ggml does when an assert fails."""

import os
import sys
from typing import Any

from quant.child_side import answer


def work(_request: dict[str, Any], _progress: Any) -> dict[str, Any]:
    print("ggml.c:42: GGML_ASSERT(imatrix != NULL) failed", file=sys.stderr, flush=True)
    os.abort()


if __name__ == "__main__":
    answer(work)
