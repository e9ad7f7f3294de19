"""The app's own colours, dark and light: quiet greys and one accent."""

from textual.theme import Theme

DARK = Theme(
    name="localllm-dark",
    dark=True,
    primary="#7aa2f7",
    secondary="#9d8cf0",
    accent="#7dcfb6",
    warning="#e0af68",
    error="#f7768e",
    success="#9ece6a",
    foreground="#d5d9e3",
    background="#14161b",
    surface="#1a1d24",
    panel="#22262f",
    variables={"footer-key-foreground": "#7dcfb6", "input-selection-background": "#7aa2f7 35%"},
)
LIGHT = Theme(
    name="localllm-light",
    dark=False,
    primary="#3559c7",
    secondary="#6a4fc1",
    accent="#0f766e",
    warning="#9a6700",
    error="#c0264a",
    success="#3f7d20",
    foreground="#23262e",
    background="#fbfbf9",
    surface="#f3f3ef",
    panel="#e8e8e2",
    variables={"footer-key-foreground": "#0f766e", "input-selection-background": "#3559c7 25%"},
)
