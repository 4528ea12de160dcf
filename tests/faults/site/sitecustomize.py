"""Python imports this at its start where its folder is on PYTHONPATH: processes of `dvc repro` are watched then."""

import os
import sys

if tally := os.environ.get("SFD_FAULT_TALLY"):
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
    from moments import kill_its_group, watch

    fatal = os.environ.get("SFD_FAULT_MOMENT")
    watch(os.environ["SFD_FAULT_FOLDER"], tally, int(fatal) if fatal else None, kill_its_group)
