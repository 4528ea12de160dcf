"""One schedule of every law, for tests that hold for all."""

from __future__ import annotations

import pytest

from sfd_cli.diffusion.laws import CurveSchedule, KnotSchedule, LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule

LAWS: dict[str, Schedule] = {
    "lead": LeadSchedule(1.3),
    "textures first": LeadSchedule(-2.0),
    "curve": CurveSchedule(0.5, 3.0),
    "falling curve": CurveSchedule(0.5, -3.0),
    "knots": KnotSchedule(((0.4, 0.1), (0.5, 0.6))),
    "offset": AsynchronousSchedule(0.3),
}
by_law = pytest.mark.parametrize("schedule", LAWS.values(), ids=LAWS.keys())
