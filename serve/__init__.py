"""Answering: the engine (llama.cpp in a child process), the HTTP server, the supervisor, the client."""
