"""``python -m purifier`` is the command ``purifier``."""

from .cli import main

main()
