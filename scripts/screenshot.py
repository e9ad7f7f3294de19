"""Writes docs/screenshot.svg: the real app holds a short conversation with the starter model and is drawn by Textual.

make screenshot
"""

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from app.tui.app import LocalLLMApp
from app.tui.export import without_remote_fonts
from localllm.conversations import ConversationStore
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.settings import load_settings
from serve.discovery import connect, running_server, stop_managed

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "screenshot.svg"
SIZE = (110, 32)
MESSAGES = ("What is gravity?", "Write a Python function that adds two numbers.")
ANSWER_SECONDS = 120
# Greedy and short: the same picture again, and a whole answer in it.
ENVIRONMENT = {"LOCALLLM_TEMPERATURE": "0", "LOCALLLM_MAX_TOKENS": "120"}


async def draw(home: Home) -> str:
    """Hold the conversation in ``home``, which has the starter model; return the picture as SVG."""
    settings = load_settings(home.settings_file, ENVIRONMENT)
    conversations = ConversationStore(home.database)
    app = LocalLLMApp(home, settings, ModelStore(home), conversations, connect)
    try:
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause(1)
            for count, message in enumerate(MESSAGES, start=1):
                await pilot.press(*message)
                await pilot.press("enter")
                async with asyncio.timeout(ANSWER_SECONDS):
                    while not _answered(conversations, count):
                        await pilot.pause(0.2)
            await pilot.pause(1)
            return without_remote_fonts(app.export_screenshot(title="localllm"))
    finally:
        conversations.close()
        if (record := running_server(home)) is not None:
            await stop_managed(home, record)


def _answered(conversations: ConversationStore, count: int) -> bool:
    newest = conversations.list(limit=1)
    path = conversations.active_path(newest[0].id) if newest else ()
    return len(path) == 2 * count and path[-1].status != "streaming"


def main() -> int:
    """Draw with a home of its own, so that nobody's conversations are in the picture."""
    models = ModelStore(Home.resolve())
    source = models.file(models.resolve("starter")).parent
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory)).ensure()
        shutil.copytree(source, home.models / source.parent.name / source.name)
        TARGET.write_text(asyncio.run(draw(home)), encoding="utf-8")
    print(TARGET.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
