"""What ``localllm doctor`` looks at: the machine, the engines, the home, privacy."""
