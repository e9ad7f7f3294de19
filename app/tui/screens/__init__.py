"""Screens: they hear what widgets post, and decide."""
