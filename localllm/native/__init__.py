"""What is known of the native libraries on this machine: does llama.cpp compute rightly here, which BLAS is fastest.

Nothing here computes with a library in the process that asks: probes run in processes of their own, since a library
that was built for another processor ends the one that calls it. What they find is kept in the home (``native/``), under
the hashes of the libraries and of the processor, and reaches workers through the environment (:mod:`.environment`).
"""
