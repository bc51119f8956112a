"""The gate looks at the same examples every time; elsewhere every run looks at new ones."""

import os

from hypothesis import settings

settings.register_profile("gate", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("gate")
