"""The HTTP surface: OpenAI-compatible routes, server-sent events, the guards in front of them."""
