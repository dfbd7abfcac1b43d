"""`anystep compare`: variants of one recipe, trained for the same number of network evaluations and measured alike."""

from anystep.compare.experiment import Comparison, choose, variant_recipe, vary
from anystep.compare.run import compare

__all__ = ["Comparison", "choose", "compare", "variant_recipe", "vary"]
