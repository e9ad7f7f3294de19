"""Pictures of the screen that a person asks for."""

import pytest

from tests.app.tui.test_chat import notices, wait_for, write


@pytest.fixture
def take_picture(settle):
    """Picks "Screenshot" in the command palette."""

    async def take(pilot):
        await pilot.press("ctrl+p")
        await write(pilot, "screenshot")
        await settle(pilot)
        await wait_for(pilot, lambda: pilot.app.screen.query("CommandList").first().option_count > 0)
        await pilot.press("enter")
        await wait_for(pilot, lambda: "picture" in notices(pilot.app) or "Saved as" in notices(pilot.app))

    return take


async def test_a_picture_is_private_and_names_no_other_machine(app, home, take_picture):
    async with app.run_test() as pilot:
        await take_picture(pilot)
    (file,) = home.exports.iterdir()
    assert file.suffix == ".svg"
    assert file.stat().st_mode & 0o777 == 0o600
    picture = file.read_text(encoding="utf-8")
    assert "Write below" in picture.replace("&#160;", " ")
    assert 'url("http' not in picture
    assert "@font-face" not in picture


async def test_a_picture_that_cannot_be_saved_is_told_of(app, home, take_picture):
    home.exports.write_text("in the way")
    async with app.run_test() as pilot:
        await take_picture(pilot)
        assert "could not be saved" in notices(app)
