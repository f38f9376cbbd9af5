"""What is submitted to a cluster: one short file a job, a dataclass for its options."""

import os

# Ray reads it when it is imported, so it stands here: on a machine by itself Ray then listens on loopback alone, its
# default on the systems that the variable names. The machines of a cluster must reach each other.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
