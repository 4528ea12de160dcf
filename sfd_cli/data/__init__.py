"""Images and the HDF5 stores made from them."""

import os

# HDF5 would refuse files on file systems without locks. Stores need none: shards get their names when they are whole,
# and who writes an artifact has it for himself (artifacts/produce.py).
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
