"""``python -m mergekit`` is ``mergekit``."""

from mergekit.cli.main import main

main()
