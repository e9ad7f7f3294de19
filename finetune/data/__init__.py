"""From files of any shape to token ids with a mask."""
