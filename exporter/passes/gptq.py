"""How the error of a rounded input is made up for by inputs yet to be rounded; it rounds nothing itself.

GPTQ, after Frantar et al. 2022, arXiv 2210.17323.
"""

from __future__ import annotations

import torch

from runtimes.contract import Array

DAMPING = 0.01  # of the mean second moment, the paper's


def shares(moment: Array) -> Array:
    """How an input's error is shared out among later ones, (K, K): U above, with U^T U the inverse of the moment.

    moment: X^T X of the inputs X (n, K) of the product, on any scale
    """
    damped = torch.from_numpy(moment).to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    diagonal += DAMPING * float(diagonal.mean()) or 1.0  # inputs that are never anything but zero say nothing
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    inverse = torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=torch.float64), upper=True)
    shared: Array = inverse.to(torch.float32).numpy()
    return shared
