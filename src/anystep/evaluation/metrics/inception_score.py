"""How sure a classifier is of each image and how different its answers are (arXiv 1606.03498, section 4)."""

from anystep.errors import InputError
from anystep.evaluation.metrics.base import BootstrapWeights, Direction, ImageFeatures, Replicates


class InceptionScore:
    """exp E KL(p(y | x) || p(y)) over all images at once; the field's mean over ten splits is lower."""

    name = "inception_score"
    direction: Direction = "higher"
    min_images = 50
    replicates = 200

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        if generated.logits is None:
            raise InputError("inception_score needs an extractor with a classifier, for example effnetlite0")
        log = generated.logits.double().log_softmax(1)
        each = weights.generated / weights.generated.sum(1, keepdim=True)
        marginal = each @ log.exp()
        divergence = each @ (log.exp() * log).sum(1) - (marginal * marginal.clamp(min=1e-300).log()).sum(1)
        return divergence.exp()
