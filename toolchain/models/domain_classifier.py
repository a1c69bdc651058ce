"""Tell two domains apart by a linear classifier on their features, and turn its error into the proxy A-distance.

Source: Ben-David et al., "Analysis of Representations for Domain Adaptation", NIPS 2006.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5  # of the cross-validation
WEIGHT_PENALTY = 1e-2  # L2, on the classifier's weights; features are standardised


def proxy_a_distance(first: Tensor, second: Tensor) -> float:
    """Return 2 (1 - 2 error) of a cross-validated linear classifier, balanced between the domains.

    Args:
        first: features of one domain, [images, features].
        second: features of the other.

    Returns:
        0 for domains that cannot be told apart, 2 for domains that never are confused.
    """
    x = torch.cat([first, second]).double()
    y = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).double()
    folds = torch.empty(len(x), dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for domain in (y == 0, y == 1):
        count = int(domain.sum())
        folds[domain] = torch.arange(count)[torch.randperm(count, generator=generator)] % FOLDS
    logits = torch.empty_like(y)
    for fold in range(FOLDS):
        training, held_out = folds != fold, folds == fold
        logits[held_out] = _classify(x[training], y[training], x[held_out])
    wrong = (logits > 0) != (y > 0)
    error = (wrong[y == 0].double().mean() + wrong[y == 1].double().mean()) / 2
    return 2 * (1 - 2 * min(float(error), 0.5))


def _classify(x: Tensor, y: Tensor, held_out: Tensor) -> Tensor:
    """Return the logits of held-out images by logistic regression; positive stands for the second domain."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, held_out = (x - mean) / deviation, (held_out - mean) / deviation
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)  # the bias comes first
    solver = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    balance = torch.where(y > 0, 1 / y.sum(), 1 / (1 - y).sum()) / 2

    def closure() -> float:
        solver.zero_grad()
        losses = F.binary_cross_entropy_with_logits(x @ weights[1:] + weights[0], y, reduction="none")
        loss = (losses * balance).sum() + WEIGHT_PENALTY * weights[1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    solver.step(closure)  # type: ignore[no-untyped-call]
    return (held_out @ weights[1:] + weights[0]).detach()
