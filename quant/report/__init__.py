"""What each smaller form of a model loses: measured side by side, kept, shown as a table and as a plot."""
