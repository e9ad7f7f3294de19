"""Widgets: they draw and post messages; screens decide."""
