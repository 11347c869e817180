"""What the tests of the toy share: seeded draws, covariances, quadrature, a small fit."""

import numpy as np
import torch

SCALES = (0.5, 1.0, 2.0)
BETAS = (0.05, 0.5, 1.0, 1.9, 2.1, 4.0)  # times t^2: the threshold is at 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grid():
    """t and beta over SCALES x BETAS, each (3, 6)."""
    t = torch.tensor(SCALES)[:, None].expand(3, 6)
    return t, t.square() * torch.tensor(BETAS)


def hermite(n=40):
    """Nodes and weights of E f(x), x ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def random_covariance(d, seed=0):
    g = torch.randn(d, 2 * d, generator=generator(seed))
    return g @ g.T / (2 * d)


def with_eigenvalues(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed))).Q
    s = q * values @ q.T
    return (s + s.T) / 2


def autoregressive(d, rho):
    i = torch.arange(float(d))
    return rho ** (i[:, None] - i).abs()


def free(*tensors):
    return [v.detach().clone().requires_grad_() for v in tensors]


def gradient(objective, *parameters):
    """Largest entry of the gradient of objective(*parameters).sum()."""
    parameters = free(*parameters)
    return max(g.abs().max().item() for g in torch.autograd.grad(objective(*parameters).sum(), parameters))


def fit(objective, *start, steps=400):
    """LBFGS from the start: the parameters and the value reached."""
    parameters = free(*start)
    options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-11, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, history_size=30, **options)

    def closure():
        optimizer.zero_grad()
        value = objective(*parameters)
        value.backward()
        return value

    optimizer.step(closure)
    return [p.detach() for p in parameters], objective(*parameters).item()


def close(a, b, tolerance=1e-10):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    torch.testing.assert_close(a, b.expand_as(a), rtol=tolerance, atol=tolerance)
