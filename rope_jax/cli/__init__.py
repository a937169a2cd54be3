"""The command line. Only this room prints, parses flags and reads a ConfigDict."""

import os

# On a shared CPU the libraries greet on standard error; a user's first screen should be ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
