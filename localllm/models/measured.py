"""Names for what was measured of a model: they begin with its content, so that another is never taken for it."""

import glob
import hashlib
import shutil
from pathlib import Path

from localllm.models.manifest import Manifest
from localllm.paths import Home


def measured_stem(model: Manifest) -> str:
    """What the names begin with of all that was measured of a model."""
    digest = hashlib.sha256("".join(file.sha256 for file in model.files).encode())
    return f"{model.name}-{digest.hexdigest()[:16]}"


def quality_directory(home: Home) -> Path:
    """Where measured qualities are, and what models predict for a text, which others are compared with."""
    return home.measured / "quality"


def forget_predictions(home: Home, model: Manifest) -> int:
    """Delete what ``model`` predicted for texts: tens of megabytes that only serve comparisons with it.

    Figures that were measured stay: they are small, cost much time, and hold when the model comes back.

    Returns:
        Bytes freed.
    """
    freed = 0
    for directory in quality_directory(home).glob(f"{glob.escape(measured_stem(model))}-*/"):
        freed += sum(path.stat().st_size for path in directory.iterdir())
        shutil.rmtree(directory)
    return freed
