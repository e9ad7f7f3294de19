"""The model store: what is here, where it came from, and how more gets in."""
