"""Preconditioned sharpness: the largest eigenvalue of P^-1/2 H P^-1/2, by Lanczos on Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from prism_plugin.errors import PrismError
from prism_plugin.optim.vectors import flatten

__all__ = ["sharpness"]


def sharpness(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    denominator: Tensor | None = None,
    penalty: float = 0.0,
    start: np.ndarray | None = None,
    tolerance: float = 1e-4,
) -> tuple[float, np.ndarray]:
    """Compute the largest (algebraic) eigenvalue of P^-1/2 H P^-1/2 and its eigenvector.

    Args:
        loss: computes the loss of the present parameters, twice differentiable.
        parameters: real parameters of float32 or float64 whose Hessian is H; n numbers in all.
        denominator: P > 0, one number or shape ``(n,)``; None is 1.
        penalty: of an L2 term penalty/2 |w|^2 that the optimizer adds to the loss; part of H.
        start: where Lanczos begins, such as the last eigenvector, shape ``(n,)``; None is a fixed random vector.
        tolerance: relative, of the eigenvalue.

    Returns:
        The eigenvalue and the eigenvector, shape ``(n,)``, float64.

    Raises:
        ValueError: if a parameter is of half precision or autocast is on, the loss is linear, a product with the
            Hessian is not finite, or Lanczos does not converge.

    Example:
        >>> x = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        >>> scales = torch.tensor([1.0, 7.0, 2.0], dtype=torch.float64)
        >>> round(sharpness(lambda: 0.5 * (scales * x.square()).sum(), [x])[0], 6)
        7.0
    """
    kinds = {parameter.dtype for parameter in parameters}
    if not kinds <= {torch.float32, torch.float64}:
        raise PrismError(f"sharpness needs float32 or float64: second derivatives are noise in {kinds.pop()}")
    if torch.is_autocast_enabled(parameters[0].device.type):
        raise PrismError("sharpness needs float32 or float64: second derivatives are noise under autocast")
    size = sum(parameter.numel() for parameter in parameters)
    first = parameters[0]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
    if not any(gradient.requires_grad for gradient in gradients):
        raise PrismError("the gradient of the loss does not depend on the parameters: the loss is linear in them")
    vector = torch.cat([gradient.reshape(-1) for gradient in gradients])
    root = None if denominator is None else denominator.detach().sqrt()

    def multiply(array: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(array.reshape(-1), dtype=first.dtype, device=first.device)
        direction = direction if root is None else direction / root
        products = torch.autograd.grad(vector, parameters, direction, retain_graph=True, materialize_grads=True)
        product = flatten(products)
        if penalty:
            product.add_(direction, alpha=penalty)
        if not bool(torch.isfinite(product).all()):
            raise PrismError("a product with the Hessian is not finite: the weights or the loss have diverged")
        return (product if root is None else product / root).double().cpu().numpy()

    if size == 1:
        return float(multiply(np.ones(1))[0]), np.ones(1)
    if start is None:
        start = np.random.default_rng(0).normal(size=size)
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, ncv=min(size, 20))
    except ArpackError as error:
        raise PrismError(f"Lanczos found no eigenvalue: {error}; a larger tolerance (now {tolerance:g}) may") from error
    return float(values[0]), vectors[:, 0]
