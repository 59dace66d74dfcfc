"""``python -m purifier.cli`` is the command ``purifier``."""

from . import main

main()
