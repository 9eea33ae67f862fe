"""Saving and loading symmetries, permutations, alignments and guides' parameters, in one format without pickle.

The layout is that of :mod:`pyro_align.files`; its ``meta`` has a ``kind``, and everything but tensors.

In ``meta`` a tensor is its number. An axis term is an atom
``{"atom": name, "size": n, "fixed": ..., "within": [...], "kind": ...}``, ``{"product": [...]}`` or ``{"sum": [...]}``.
Nothing in a file is ever executed, and what is read is checked as if it were written by hand.

A guide is saved as its parameters, a wrapped one with its relabelings. Loading them needs a guide of the same type
over the same model, which has run once (``like=``): the model itself is code, and stays where it is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_align.alignment.pair import Alignment
from pyro_align.axes import Atom, Axis, Product, Sum
from pyro_align.errors import FormatError, PyroAlignError
from pyro_align.files import read_tensors, write_tensors
from pyro_align.guides import GuideAndModel, Posterior, RelabeledGuide, read_guide
from pyro_align.guides.families.network import ModelAt
from pyro_align.guides.registry import by_draws, read_again
from pyro_align.matching import Match
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.findings import Certificate, Completeness, Missing, OpaqueOperation, Reason, Resting
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.scalings import Scaling


def save(path: str | os.PathLike[str], value: Symmetry | Permutation | Alignment | Posterior | nn.Module) -> None:
    """Writes a symmetry, a permutation, an alignment, or a guide's parameters to a file.

    The file appears under its name only once it is complete.

    Args:
        path: The file; an existing one is replaced.
        value: What to save. An alignment keeps its relabeled guide's parameters; of a divergence by activations
            only the name comes back.

    Raises:
        TypeError: Something else was given.

    Example:
        >>> import tempfile, os
        >>> from pyro_align import Symmetry
        >>> from pyro_align.io import load, save
        >>> symmetry = Symmetry.from_axes({"w": ("h", None)}, shapes={"w": (4, 2)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(os.path.join(folder, "p.safetensors"), symmetry.random(3))
        ...     p = load(os.path.join(folder, "p.safetensors"))
        >>> p == symmetry.random(3)
        True
    """
    for kind, (cls, encode, _) in _KINDS.items():
        if isinstance(value, cls):
            arrays: list[Tensor] = []
            write_tensors(path, {"kind": kind, **encode(value, arrays)}, arrays)
            return
    raise TypeError(
        f"cannot save a {type(value).__name__}; expected a Symmetry, a Permutation, an Alignment or a guide"
    )


def load(path: str | os.PathLike[str], *, like: nn.Module | Posterior | None = None) -> Any:
    """Reads what :func:`save` wrote.

    Args:
        path: The file.
        like: For alignments and guides, a guide of the saved type over the same model that has run once, or a posterior
            read from one, whose arguments and labels are kept. It stays as it is.

    Returns:
        A ``Symmetry``, ``Permutation`` or ``Alignment``; or a new guide with the saved parameters.

    Raises:
        FormatError: The file is truncated, not of this format, of a newer version, or does not match its digest.
        FileNotFoundError: There is no such file.

    Example:
        >>> import tempfile, os
        >>> from pyro_align import Symmetry, load, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "s.safetensors")
        ...     save(file, Symmetry.from_axes({"w": ("h", None)}, shapes={"w": (4, 2)}))
        ...     symmetry = load(file)
        >>> symmetry.atoms["h"].size
        4
    """
    meta, arrays = read_tensors(path)
    kind = meta.get("kind")
    if kind not in _KINDS:
        raise FormatError(f"{path}: holds a '{kind}', expected one of {', '.join(_KINDS)}")
    if kind in ("alignment", "guide") and like is None:
        raise TypeError(f"{path} holds {_described(meta, arrays)}")
    posterior = None if like is None else read_guide(like)  # what is wrong with it is no fault of the file
    try:
        return _KINDS[kind][2](meta, arrays, posterior)
    except FormatError:
        raise
    except (PyroAlignError, KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: its contents are not a valid {kind} ({type(error).__name__}: {error})") from error


def _described(meta: Mapping[str, Any], arrays: list[Tensor]) -> str:
    """What a guide to load into must be."""
    state = meta["state"] if isinstance(meta.get("state"), Mapping) else {}
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in _get(state, arrays).items())
    kind = meta.get("type")
    like = "the guide that was relabeled, or another" if kind == RelabeledGuide.__name__ else f"a {kind}"
    return (
        f"the parameters of a {kind} ({shapes}); its model is code, and stays where it is: pass "
        f"{like} over the same model that has run once, load(path, like=guide)"
    )


def _put(tensors: Mapping[str, Tensor], arrays: list[Tensor]) -> dict[str, int]:
    """Name -> number of the tensor, once it is among the arrays."""
    first = len(arrays)
    arrays += tensors.values()
    return {name: first + i for i, name in enumerate(tensors)}


def _get(numbers: Mapping[str, Any], arrays: list[Tensor]) -> dict[str, Tensor]:
    for number in numbers.values():
        if not isinstance(number, int) or not 0 <= number < len(arrays):
            raise ValueError(f"there is no tensor {number!r}")
    return {name: arrays[number] for name, number in numbers.items()}


# -- symmetries and permutations ---------------------------------------------------------------------------------------


def _encode_axis(axis: Axis) -> dict[str, Any]:
    if isinstance(axis, Atom):
        return {
            "atom": axis.name,
            "size": axis.size,
            "fixed": axis.fixed,
            "within": list(axis.within),
            "kind": axis.kind,
        }
    if isinstance(axis, Product):
        return {"product": [_encode_axis(t) for t in axis.factors]}
    return {"sum": [_encode_axis(t) for t in axis.terms]}


def _decode_axis(entry: Mapping[str, Any]) -> Axis:
    if "product" in entry:
        return Product(*(_decode_axis(t) for t in entry["product"]))
    if "sum" in entry:
        return Sum(*(_decode_axis(t) for t in entry["sum"]))
    name, size = entry["atom"], entry["size"]
    if not isinstance(name, str) or not (isinstance(size, int) and size >= 0):
        raise ValueError(f"an atom has a name and a size, got {name!r} and {size!r}")
    return Atom(name, size, bool(entry["fixed"]), tuple(entry["within"]), entry["kind"])


def _encode_symmetry(symmetry: Symmetry, arrays: list[Tensor]) -> dict[str, Any]:
    return {
        "sites": {site: [_encode_axis(t) for t in terms] for site, terms in symmetry.sites.items()},
        "scope": symmetry.scope,
        "opaque": [dataclasses.asdict(o) for o in symmetry.opaque],
        "certificate": None if symmetry.certificate is None else dataclasses.asdict(symmetry.certificate),
        "rests": [dataclasses.asdict(r) for r in symmetry.rests],
        "stacks": {site: list(members) for site, members in symmetry.stacks.items()},
        "scalings": [{"atom": s.atom, "exponents": [list(e) for e in s.exponents]} for s in symmetry.scalings],
        "reasons": [
            {"site": site, "axis": axis, **dataclasses.asdict(reason)}
            for (site, axis), reasons in symmetry.reasons.items()
            for reason in reasons
        ],
    }


def _decode_symmetry(meta: Mapping[str, Any], arrays: list[Tensor], like: Any = None) -> Symmetry:
    certificate = meta["certificate"]
    return Symmetry(
        {site: tuple(_decode_axis(t) for t in terms) for site, terms in meta["sites"].items()},
        scope=meta["scope"],
        opaque=tuple(OpaqueOperation(**{**o, "sites": tuple(o["sites"])}) for o in meta["opaque"]),
        certificate=None if certificate is None else _decode_certificate(certificate),
        reasons=_decode_reasons(meta.get("reasons", ())),
        rests=tuple(
            Resting(r["tensor"], r["axis"], tuple(r["runs"]), tuple(r["atoms"])) for r in meta.get("rests", ())
        ),
        scalings=tuple(
            Scaling(s["atom"], tuple((site, axis, k) for site, axis, k in s["exponents"]))
            for s in meta.get("scalings", ())
        ),
        stacks={site: tuple(members) for site, members in meta.get("stacks", {}).items()},
    )


def _decode_certificate(entry: Mapping[str, Any]) -> Certificate:
    count = entry.get("completeness")
    if count is None:
        return Certificate(**entry)
    places = {"left_out": tuple((s, a) for s, a in count["left_out"])}
    places["missing"] = tuple(
        Missing(m["kind"], m["dimension"], tuple((s, a) for s, a in m["places"])) for m in count["missing"]
    )
    return Certificate(**{**entry, "completeness": Completeness(**{**count, **places})})


def _decode_reasons(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], tuple[Reason, ...]]:
    found: dict[tuple[str, int], tuple[Reason, ...]] = {}
    for entry in entries:
        place = entry["site"], entry["axis"]
        reason = Reason(**{k: v for k, v in entry.items() if k not in ("site", "axis")})
        found[place] = (*found.get(place, ()), reason)
    return found


def _encode_permutation(p: Permutation, arrays: list[Tensor]) -> dict[str, Any]:
    return {
        "symmetry": _encode_symmetry(p.symmetry, arrays),
        **{part: _put(getattr(p, part), arrays) for part in ("indices", "signs", "rotations")},
    }


def _decode_permutation(meta: Mapping[str, Any], arrays: list[Tensor], like: Any = None) -> Permutation:
    indices, signs, rotations = (_get(meta[part], arrays) for part in ("indices", "signs", "rotations"))
    if any(index.is_floating_point() for index in indices.values()):
        raise ValueError("indices must be integers")
    return _decode_symmetry(meta["symmetry"], arrays).permutation(indices, signs, rotations)


# -- guides and alignments ---------------------------------------------------------------------------------------------


def _encode_guide(guide: nn.Module | Posterior, arrays: list[Tensor]) -> dict[str, Any]:
    guide = guide.to_guide() if isinstance(guide, Posterior) else read_guide(guide).to_guide()
    meta = {"type": type(guide).__name__, "state": _put(_tensors(guide), arrays)}
    if isinstance(inner := _inner(guide), RelabeledGuide):  # its relabelings are no parameters
        meta["relabelings"] = [_encode_permutation(p, arrays) for p in inner.relabelings]
    return meta


def _inner(guide: Any) -> Any:
    return guide.guide if isinstance(guide, GuideAndModel) else guide


def _tensors(guide: Any) -> dict[str, Tensor]:
    """Name -> tensor of a guide, and of the model whose parameters were learned with it."""
    if isinstance(guide, GuideAndModel):
        parts = {"guide": _tensors(guide.guide), "model": _tensors(guide.model)}
        return {f"{part}.{name}": value for part, of in parts.items() for name, value in of.items()}
    if isinstance(guide, ModelAt):
        return guide.tensors
    if not isinstance(guide, nn.Module):
        raise TypeError(f"cannot save a {type(guide).__name__}, which is no module; save its draws or its Permutation")
    return dict(guide.state_dict())


def _restored(meta: Mapping[str, Any], arrays: list[Tensor], q: Posterior) -> tuple[nn.Module, Posterior]:
    """The guide, and its posterior."""
    guide = q.to_guide()
    if "relabelings" in meta and not isinstance(_inner(guide), RelabeledGuide):
        # a plain guide stands for one that is known by its draws since it was relabeled
        q = by_draws(q)
        guide = q.to_guide()
    if type(guide).__name__ != meta["type"]:
        raise FormatError(f"the file holds a {meta['type']}, like= is a {type(guide).__name__}")
    state = _get(meta["state"], arrays)
    own = _tensors(guide)
    wrong = sorted(set(state) ^ set(own)) or [k for k, v in own.items() if v.shape != state[k].shape]
    if wrong:
        raise FormatError(f"the saved guide and like= differ in the parameters {wrong}; is it the same model?")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.dtype != state[name].dtype:
                raise FormatError(f"parameter '{name}' was saved as {state[name].dtype}, like= has {tensor.dtype}")
            tensor.copy_(state[name])
    if "relabelings" in meta:
        _inner(guide).relabelings = tuple(_decode_permutation(entry, arrays) for entry in meta["relabelings"])
    return guide, read_again(q, guide)  # refuses NaN and infinite parameters


def _encode_alignment(alignment: Alignment, arrays: list[Tensor]) -> dict[str, Any]:
    match = {f.name: getattr(alignment.match, f.name) for f in dataclasses.fields(Match) if f.name != "permutation"}
    margins = match.pop("margins", None)
    words = alignment.divergence  # activations, which hold a model and data, go as they print
    return {
        **_encode_guide(alignment.posterior, arrays),
        "permutation": _encode_permutation(alignment.permutation, arrays),
        "distances": [alignment.distance_before, alignment.distance],
        "site_distances": {k: list(v) for k, v in alignment.site_distances.items()},
        "divergence": {str(part): w for part, w in words.items()} if isinstance(words, Mapping) else str(words),
        "match": {k: dict(v) if isinstance(v, Mapping) else v for k, v in match.items()},
        "margins": None if margins is None else _put(margins, arrays),
        "scales": [_put(side, arrays) for side in alignment.scales],
    }


def _decode_alignment(meta: Mapping[str, Any], arrays: list[Tensor], like: Posterior) -> Alignment:
    p = _decode_permutation(meta["permutation"], arrays)
    margins = meta["margins"]
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["match"].items()}
    if margins is not None:
        found["margins"] = _get(margins, arrays)
    before, after = meta["distances"]
    return Alignment(
        permutation=p,
        posterior=_restored(meta, arrays, like)[1],
        distance_before=before,
        distance=after,
        site_distances={k: tuple(v) for k, v in meta["site_distances"].items()},
        divergence=meta["divergence"],
        match=Match(permutation=p, **found),
        scales=tuple(_get(side, arrays) for side in meta.get("scales", ())),
    )


_KINDS: dict[str, tuple[type[Any] | tuple[type[Any], ...], Callable[..., Any], Callable[..., Any]]] = {
    "symmetry": (Symmetry, _encode_symmetry, _decode_symmetry),
    "permutation": (Permutation, _encode_permutation, _decode_permutation),
    "alignment": (Alignment, _encode_alignment, _decode_alignment),
    "guide": ((nn.Module, Posterior), _encode_guide, lambda *given: _restored(*given)[0]),
}
