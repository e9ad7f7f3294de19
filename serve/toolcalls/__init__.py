"""Tool calls: how each family of models is told of tools, and how its calls are read from streaming text."""
