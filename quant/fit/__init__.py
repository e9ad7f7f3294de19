"""The best mix of types for a budget of memory: what each tensor costs in quality at each type, and an exact choice."""
