"""Training a purifier: the loop, the recipes, and the state that lets a killed run go on."""

from .loop import Progress as Progress
from .loop import train as train
from .recipes import Recipe as Recipe
