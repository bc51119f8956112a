"""The gate looks at the same examples every time; elsewhere every run looks at new ones."""

import os

from hypothesis import settings

# The first example of a kernel may have to wait for its compiler.
settings.register_profile("anywhere", deadline=None)
settings.register_profile("gate", derandomize=True, deadline=None)
settings.load_profile("gate" if os.environ.get("CI") else "anywhere")
