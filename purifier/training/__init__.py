"""Training: the loop, and the recipes it follows."""

from .epoch import Progress as Progress
from .loop import train as train
from .recipe import Batch as Batch
from .recipe import Recipe as Recipe
