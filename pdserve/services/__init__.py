import os

# gRPC's own lines on standard error say what strangers sent (a compressed message, an odd frame), one line
# each. What goes wrong in opening a port it raises as well. It reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
