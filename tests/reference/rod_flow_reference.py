"""The nine optimizers, their stable flows and rod flows as the specification writes them, one formula each.

Source: the rod-flow specification (Regis and Chewi, arXiv 2602.01480 and 2605.06821), float64 numpy, the papers' own
convention: Nesterov's w is not the point where the gradient is taken. ``grad`` gives the gradient at a point.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Grad = Callable[[np.ndarray], np.ndarray]


def direction(name: str, m: np.ndarray, g: np.ndarray, t: float, b1: float) -> np.ndarray:
    """u(m, g) of the update w' = w - eta u / P."""
    c1, c1n = 1 - b1 ** (t + 1), 1 - b1 ** (t + 2)
    if name in ("gd", "rmsprop", "scalar-rmsprop"):
        return g
    if name in ("heavy-ball", "nesterov"):
        return b1 * m + (1 - b1) * g
    if name in ("adam", "scalar-adam"):
        return (b1 * m + (1 - b1) * g) / c1
    return b1 * (b1 * m + (1 - b1) * g) / c1n + (1 - b1) * g / c1


def discrete(name, w, m, nu, t, grad: Grad, eta, b1, b2, eps):
    """One step of the plain optimizer."""
    q = w - eta * b1 * m if name == "nesterov" else w
    g = grad(q)
    nu = b2 * nu + (1 - b2) * (g @ g if name.startswith("scalar") else g * g)
    return w - eta * direction(name, m, g, t, b1) / scale(name, nu, t, b2, eps), b1 * m + (1 - b1) * g, nu


def scale(name, nu, t, b2, eps):
    """P."""
    if name in ("gd", "heavy-ball", "nesterov"):
        return 1.0
    if name in ("rmsprop", "scalar-rmsprop"):
        return np.sqrt(nu) + eps
    return np.sqrt(nu / (1 - b2 ** (t + 1))) + eps


def rod_euler(name, w, m, nu, ow, om, tau, h, grad: Grad, eta, b1, b2, eps):
    """Euler step of length h of the signed rod flow; with a rod of zeros it is the stable flow."""
    q, oq = (w - eta * b1 * m, ow - eta * b1 * om) if name == "nesterov" else (w, ow)
    g_plus, g_minus = grad(q + oq), grad(q - oq)
    gb, gd = (g_plus + g_minus) / 2, (g_plus - g_minus) / 2
    index = tau - 1 / 2 + h / 2
    rate = (1 - b2) * ((gb @ gb + gd @ gd if name.startswith("scalar") else gb**2 + gd**2) - nu)
    p = scale(name, nu + (1 / 2 + h / 2) * rate, index, b2, eps)
    dw, dm = -eta * direction(name, m, gb, index, b1) / p, (1 - b1) * (gb - m)
    dow = -2 * ow + eta * direction(name, om, gd, index, b1) / p
    dom = -(1 + b1) * om - (1 - b1) * gd
    return w + h * dw, m + h * dm, nu + h * rate, ow + h * dow, om + h * dom


def rod_start(before, point, after):
    """Center and rod of three consecutive points (w, m, nu)."""
    center = [(a + 2 * b + c) / 4 for a, b, c in zip(before, point, after, strict=True)]
    rod = [(2 * b - a - c) / 4 for a, b, c in zip(before, point, after, strict=True)]
    return center, rod[:2]


def outer_euler(w, nu, delta, index, h, grad: Grad, eta, b2, eps, name):
    """Euler step of the outer form without momentum: the best approximation of rank one of the whole Sigma."""
    g_plus, g_minus = grad(w + delta), grad(w - delta)
    rate = (1 - b2) * ((g_plus**2 + g_minus**2) / 2 - nu)
    p = scale(name, nu + (1 / 2 + h / 2) * rate, index, b2, eps)
    go_plus, go_minus = -eta * g_plus / p, -eta * g_minus / p
    sigma = (1 - 2 * h) * np.outer(delta, delta) + h * (np.outer(go_plus, go_plus) + np.outer(go_minus, go_minus)) / 4
    values, vectors = np.linalg.eigh(sigma)
    new = np.sqrt(values[-1]) * vectors[:, -1]
    return w + h * (go_plus + go_minus) / 2, nu + h * rate, new if new @ delta > 0 else -new
