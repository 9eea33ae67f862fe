"""Cold posteriors: the latent sites' log densities, scaled."""

from __future__ import annotations

from collections.abc import Collection

from pyro.poutine.messenger import Messenger


class TemperMessenger(Messenger):
    """Scales the log density of every latent site by a temperature, in a model and in its guide alike.

    With both tempered the ELBO becomes E_q[log p(y | z)] - T KL(q || prior): a cold posterior for T < 1 (Wenzel et al.
    2020, "How good is the Bayes posterior in deep neural networks really?").

    Args:
        temperature: Weight of the KL, T > 0.
        plates: Plates whose sites are left as they are.

    Raises:
        ValueError: The temperature is not a positive number.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_align.model.effects import TemperMessenger
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> trace = pyro.poutine.trace(TemperMessenger(0.1)(model)).get_trace()
        >>> trace.nodes["z"]["scale"]
        0.1
    """

    plates: frozenset[str]
    temperature: float

    def __init__(self, temperature: float, *, plates: Collection[str] = ()):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number > 0, the weight of the KL; got {temperature!r}")
        self.temperature, self.plates = temperature, frozenset(plates)

    def _pyro_sample(self, msg):
        if not msg["is_observed"] and not any(f.name in self.plates for f in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.temperature
