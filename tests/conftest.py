"""What tests of several rooms share."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["tests.engines"]

# A busy machine is no fault of the code: what takes long is found by what it says, not by a clock.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
