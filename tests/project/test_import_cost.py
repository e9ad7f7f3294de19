"""What must stay cheap: `localllm --help`, and importing the app."""

import os
import subprocess
import sys

import pytest

HEAVY = ("llama_cpp", "mlx", "transformers", "torch", "huggingface_hub")
HELP_SECONDS = 0.3


def modules_after(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh Python that has run ``statement``."""
    script = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize("module", ["app.cli.main", "app.tui.app", "serve.client", "serve.discovery"])
def test_no_model_library_is_imported(module):
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize("command", ["chat", "pull", "models", "serve", "jobs", "doctor", "tui"])
def test_command_modules_import_no_library_that_costs_time(command):
    assert modules_after(f"import app.cli.{command}").isdisjoint({*HEAVY, "textual", "httpx2", "starlette", "uvicorn"})


def test_help_imports_no_settings_and_no_app():
    assert modules_after("import app.cli.main").isdisjoint({"pydantic", "tomlkit", "textual", "sqlite3", "asyncio"})


def test_help_answers_at_once():
    """The best of five, in time of this process's own: a busy machine makes none of them slower than it is."""

    def cpu_seconds() -> float:
        process = subprocess.Popen([sys.executable, "-m", "app", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    assert min(cpu_seconds() for _ in range(5)) < HELP_SECONDS
