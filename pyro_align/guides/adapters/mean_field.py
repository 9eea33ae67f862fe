"""Mean-field posteriors of other packages: thin adapters that never import them.

| what | package | stores |
|---|---|---|
| ``VIDiagState`` | posteriors | trees ``params``, ``log_sd_diag`` |
| ``mu_weight``, ``rho_weight`` in modules | Bayesian-Torch | softplus of ``rho`` is the scale |
| ``weight_mu``, ``weight_rho`` in modules | BLiTZ | the same, twice: its samplers hold them, too |
| ``weight_mu``, ``weight_sigma`` in modules | torch-uncertainty | the same; softplus of ``sigma`` is the scale |

A state is read by ``read_guide`` like any guide. Bayesian layers sit inside ordinary modules, which say nothing about
themselves; ``read_bayesian_module`` reads those, after ``load_state_dict`` where they are in a checkpoint. What is
written back is what was read: a state, a copy of the module.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_align.errors import GuideError
from pyro_align.guides.families.entrywise import read_entries
from pyro_align.guides.families.mean_field import MeanFieldNormal
from pyro_align.guides.pyro_state.modules import Prototype, latent_nodes, raw_parameters, sites_of
from pyro_align.guides.registry import register_guide
from pyro_align.model.supports import base_support

EXP: constraints.Constraint = constraints.positive  # its transform is the exponential
_MU_RHO = re.compile(r"(?P<left>(?:.*\.)?)(?:mu_(?P<a>\w+)|(?P<b>\w+)_mu)$")


# -- posteriors --------------------------------------------------------------------------------------------------------


@register_guide("posteriors.vi.diag.VIDiagState")
def read_vi_diag_state(state: Any) -> MeanFieldNormal:
    """Reads ``params`` and ``log_sd_diag``, flat mappings from parameter names to tensors."""
    params, log_sds = dict(state.params.items()), dict(state.log_sd_diag.items())
    for name, value in params.items():
        if not isinstance(value, Tensor):
            raise GuideError(f"parameter '{name}' is a {type(value).__name__}; flatten params to name -> tensor")
    locs, scales = raw_parameters(params), raw_parameters({k: log_sds[k] for k in params}, EXP)
    return MeanFieldNormal(sites_of(locs), locs, scales, partial(_write_state, state))


def _write_state(like: Any, q: MeanFieldNormal) -> Any:
    """A state with these parameters. The optimizer's state belongs to the old parameters and is kept as it was."""
    params = _tree_like(like.params, {k: v.value.clone() for k, v in q.locs.items()})
    log_sds = _tree_like(like.log_sd_diag, {k: v.raw.clone() for k, v in q.scales.items()})
    return like.replace(params=params, log_sd_diag=log_sds)


def _tree_like(tree: Any, values: dict[str, Tensor]) -> Any:
    return values if type(tree) is dict else type(tree)(values)


# -- Bayesian-Torch, BLiTZ ---------------------------------------------------------------------------------------------


def read_bayesian_module(module: nn.Module) -> MeanFieldNormal:
    """Reads the Bayesian layers of a Bayesian-Torch, BLiTZ or torch-uncertainty module.

    Sites are named by their place in the module, ``"0.weight"`` for ``0.mu_weight`` and ``0.rho_weight``, and scales
    are ``softplus(rho)``. Other parameters of the module (normalization layers) are left as they are.

    Args:
        module: The module.

    Returns:
        A posterior whose ``to_guide()`` is a copy of the module with these parameters.

    Raises:
        GuideError: The module has no such layers.
    """
    pairs = mu_rho_pairs(module)
    if not pairs:
        raise GuideError(
            f"this {type(module).__name__} has no parameters named mu_* and rho_*, or *_mu and *_rho: it holds no "
            "Bayesian layers of Bayesian-Torch, BLiTZ or torch-uncertainty"
        )
    own = dict(module.named_parameters())
    for mine, twin in _twins(module, pairs):
        if not torch.equal(mine, twin):
            raise GuideError(
                "a BLiTZ layer's parameters differ from its sampler's, as they do in a copy made by deepcopy; "
                "load the parameters into a new module with load_state_dict"
            )
    locs = raw_parameters({site: own[mu] for site, (mu, _) in pairs.items()})
    scales = raw_parameters({site: own[rho] for site, (_, rho) in pairs.items()}, pyro_constraints.softplus_positive)
    writer = partial(_write_module, copy.deepcopy(module), pairs)
    return MeanFieldNormal(sites_of(locs), locs, scales, writer)


def mu_rho_pairs(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Site -> names of its two parameters, for the Bayesian layers of these packages in a module."""
    names = dict(module.named_parameters())
    pairs = {}
    for name in names:
        found = _MU_RHO.match(name)
        if found is None:
            continue
        left, a, b = found["left"], found["a"], found["b"]
        layer = module.get_submodule(left.removesuffix("."))
        last = "sigma" if type(layer).__module__.startswith("torch_uncertainty.") else "rho"
        rho = f"{left}rho_{a}" if a else f"{left}{b}_{last}"
        if rho in names:
            pairs[left + (a or b)] = (name, rho)
    return pairs


def _write_module(like: nn.Module, pairs: Mapping[str, tuple[str, str]], q: MeanFieldNormal) -> nn.Module:
    module = copy.deepcopy(like)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for site, (mu, rho) in pairs.items():
            own[mu].copy_(q.locs[site].value)
            own[rho].copy_(q.scales[site].raw)
    for mine, twin in _twins(module, pairs):
        twin.data = mine.data
    return module


def _twins(module: nn.Module, pairs: Mapping[str, tuple[str, str]]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """BLiTZ draws from a sampler whose ``mu`` and ``rho`` are other parameters over the same memory."""
    own, twins = dict(module.named_parameters()), []
    for site, names in pairs.items():
        for name, short in zip(names, ("mu", "rho"), strict=True):
            if f"{site}_sampler.{short}" in own:
                twins.append((own[name], own[f"{site}_sampler.{short}"]))
    return twins


# -- TyXe --------------------------------------------------------------------------------------------------------------


@register_guide("tyxe.guides.AutoNormal")
def read_tyxe_auto_normal(guide: Any) -> MeanFieldNormal:
    """Reads ``<site>.loc`` and ``<site>.scale``, either of which may be a constant instead of a parameter."""
    latent_nodes(guide)  # refuses one that has not run
    prototype = Prototype.of(guide)
    # TyXe looks whether a site's innermost distribution is real, and a slim trace knows the outermost support only: its
    # sites would be transformed normals, for which its ELBO finds no closed-form divergence
    for node in prototype.attributes["prototype_trace"].nodes.values():
        if base_support(node["fn"].support) is constraints.real:
            node["fn"].support = constraints.real
    paths = {"locs": "{}.loc", "scales": "{}.scale"}
    return read_entries(MeanFieldNormal, guide, paths, full_plates=False, prototype=prototype)
