"""Importance matrices: how much each input of a weight matrix matters, measured on text."""
