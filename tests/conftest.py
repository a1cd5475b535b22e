"""Settings of the whole suite."""

import os

# Before torch is imported: tests compute on one thread, so that a busy machine does not stall them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
