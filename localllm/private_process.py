"""What every process does first that works on a person's data for this program."""

import faulthandler
import os
import resource

from localllm.paths import DIR_MODE


def keep_private() -> None:
    """Leave no core file, make files and directories for this user alone; show a stack where native code crashes."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a person's data
    os.umask(0o777 & ~DIR_MODE)  # holds also for what libraries and native code make
