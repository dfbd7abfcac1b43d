"""Training objectives: which pairs of times are learned, from which targets, with which weights.

One part of an objective a file; `presets` puts published objectives together from them.
"""

from anystep.objective.batch import TrainingBatch
from anystep.objective.derivatives import Derivative, DerivativeKind, derivative
from anystep.objective.draws import TimeDistribution, TimeDraws
from anystep.objective.evaluation import BoundNetwork, Evaluation, TransitionPoints
from anystep.objective.guidance import GuidanceCondition, ModelGuidance
from anystep.objective.loss import BranchVelocity, LossRecord, TransitionObjective, residual_by_bin, target_cost
from anystep.objective.targets import Identity, Implicit, SelfConsistency, SelfEvaluation, Target, Terminal
from anystep.objective.weights import Normaliser, RunningMean, Uncertainty, Weighting, interval_weight

__all__ = [
    "BoundNetwork",
    "BranchVelocity",
    "Derivative",
    "DerivativeKind",
    "Evaluation",
    "GuidanceCondition",
    "Identity",
    "Implicit",
    "LossRecord",
    "ModelGuidance",
    "Normaliser",
    "RunningMean",
    "SelfConsistency",
    "SelfEvaluation",
    "Target",
    "Terminal",
    "TimeDistribution",
    "TimeDraws",
    "TrainingBatch",
    "TransitionObjective",
    "TransitionPoints",
    "Uncertainty",
    "Weighting",
    "derivative",
    "interval_weight",
    "residual_by_bin",
    "target_cost",
]
