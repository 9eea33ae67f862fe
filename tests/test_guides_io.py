"""Saving and loading: everything comes back, and what is not a file of ours is refused."""

import json
import subprocess
import sys
import textwrap
import zipfile

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_align.alignment.pair import align
from pyro_align.axes import Atom, Odd, Product, Rotated
from pyro_align.discovery import find_symmetry
from pyro_align.errors import FormatError
from pyro_align.guides import permute_guide, read_guide
from pyro_align.io import load, save
from pyro_align.objectives import Activations
from pyro_align.symmetry import SymmetrySpec
from pyro_align.symmetry.group import Certificate, OpaqueOperation, Symmetry, same_group

MODEL = """
def model():
    w1 = pyro.sample("w1", dist.Normal(0, 1).expand([4, 2]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0, 1).expand([3, 4]).to_event(2))
    pyro.sample("y", dist.Normal(torch.tanh(torch.ones(5, 2) @ w1.T) @ w2.T, 1).to_event(2), obs=torch.zeros(5, 3))
"""
exec(textwrap.dedent(MODEL))
SYMMETRY = Symmetry.from_axes({"w1": ("h", None), "w2": (None, "h")}, shapes={"w1": (4, 2), "w2": (3, 4)})


def fitted(make, seed=0):
    with pyro.get_param_store().scope():
        guide = make(model)  # noqa: F821
        guide()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in guide.parameters():
            tensor += torch.randn(tensor.shape, generator=generator)
    return guide


@pytest.fixture
def symmetry():
    heads = Atom("head", 2), Atom("unit", 3, within=("head",), kind="signed")
    sites = {
        "q": (Product(*heads), Atom("", 5, fixed=True)),
        "v": (Atom("h", 4), [Atom("h", 4), 2]),
        "b": (Odd("r", 3),),
        "f": (Rotated("f", 3), 2),
    }
    made = SymmetrySpec(sites)
    return Symmetry(
        made.sites,
        opaque=(OpaqueOperation("aten.sort", "model.py:3", ("v",)),),
        certificate=Certificate(3, -12.5, 1e-12, 1e-9, 7),
    )


def test_symmetries_and_permutations_come_back(symmetry, tmp_path):
    save(tmp_path / "s.zip", symmetry)
    back = load(tmp_path / "s.zip")
    assert same_group(back, symmetry)
    assert (back.scope, back.opaque, back.certificate) == (symmetry.scope, symmetry.opaque, symmetry.certificate)
    assert str(back) == str(symmetry)
    p = symmetry.random(3)
    save(tmp_path / "p.zip", p)
    q = load(tmp_path / "p.zip")
    assert q == p
    assert p.signs
    values = {k: torch.randn(shape) for k, shape in symmetry.shapes.items()}
    assert all(torch.equal(v, q.apply(values)[k]) for k, v in p.apply(values).items())


def test_the_same_value_gives_the_same_bytes(symmetry, tmp_path):
    save(tmp_path / "a.zip", symmetry.random(1))
    save(tmp_path / "b.zip", symmetry.random(1))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert [f.name for f in tmp_path.iterdir() if "partial" in f.name] == []


@pytest.mark.parametrize(
    "make", [AutoNormal, AutoDiagonalNormal, AutoDelta, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
)
def test_guides_come_back(make, tmp_path):
    guide, like = fitted(make, 0), fitted(make, 1)
    save(tmp_path / "g.zip", guide)
    before = {k: v.clone() for k, v in like.state_dict().items()}
    back = load(tmp_path / "g.zip", like=like)
    assert type(back) is make
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in guide.state_dict().items())
    assert all(torch.equal(v, like.state_dict()[k]) for k, v in before.items())
    back()
    with pytest.raises(TypeError, match="like=guide"):
        load(tmp_path / "g.zip")
    with pytest.raises(FormatError, match="holds a"):
        load(tmp_path / "g.zip", like=fitted(AutoNormal if make is not AutoNormal else AutoDelta))


def test_alignments_by_activations_come_back(tmp_path):
    """The model and the data of an objective stay where they are."""

    def with_data(x, y=None):
        w1 = pyro.sample("w1", dist.Normal(0, 1).expand([4, 2]).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(0, 1).expand([3, 4]).to_event(2))
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T) @ w2.T, 1).to_event(2), obs=y)

    x = torch.randn(5, 2)
    y = torch.linspace(-1, 1, 15).reshape(5, 3)  # told apart, or outputs could be relabeled, too
    by, symmetry = Activations(with_data, x, y), find_symmetry(with_data, x, y)
    for divergence, expected in ((by, str(by)), ({"w2": 1.0, by: 2.0}, {"w2": 1.0, str(by): 2.0})):
        alignment = align(fitted(AutoNormal, 0), fitted(AutoNormal, 1), symmetry, divergence=divergence)
        assert "tensor" not in str(alignment)
        save(tmp_path / "a.zip", alignment)
        back = load(tmp_path / "a.zip", like=fitted(AutoNormal, 2))
        assert back.divergence == expected
        assert back.permutation == alignment.permutation


def test_wrapped_guides_come_back_with_their_relabeling(tmp_path):
    a, b, like = (fitted(AutoIAFNormal, seed) for seed in range(3))
    alignment = align(a, permute_guide(b, SYMMETRY.random(5)), SYMMETRY)
    assert not alignment.permutation.is_identity
    save(tmp_path / "a.zip", alignment)
    save(tmp_path / "g.zip", alignment.guide)
    save(tmp_path / "b.zip", b)
    noise = alignment.posterior.noise(3)
    expected = alignment.posterior.push(noise)
    for back in (
        load(tmp_path / "a.zip", like=like).posterior,
        read_guide(load(tmp_path / "g.zip", like=like)),
        read_guide(load(tmp_path / "g.zip", like=permute_guide(like, SYMMETRY.random(7)))),
        read_guide(load(tmp_path / "b.zip", like=alignment.guide))
        .permute(SYMMETRY.random(5))
        .permute(alignment.permutation),
    ):
        assert all(torch.equal(v, expected[k]) for k, v in back.push(noise).items())


def test_an_aligned_guide_gives_the_same_elbo_in_another_process(tmp_path):
    alignment = align(fitted(AutoNormal, 0), fitted(AutoNormal, 1), SYMMETRY)
    save(tmp_path / "a.zip", alignment)
    pyro.set_rng_seed(3)
    expected = Trace_ELBO().loss(model, alignment.guide)  # noqa: F821
    script = f"""
import sys, torch, pyro, pyro.distributions as dist
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_align.io import load
torch.set_default_dtype(torch.float64)
{MODEL}
like = AutoNormal(model)
like()
alignment = load(sys.argv[1], like=like)
pyro.set_rng_seed(3)
print(repr(Trace_ELBO().loss(model, alignment.guide)), alignment.distance, alignment.match.status)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a.zip")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) == expected
    assert float(out[1]) == alignment.distance
    assert out[2] == alignment.match.status
    here = load(tmp_path / "a.zip", like=fitted(AutoNormal, 2))
    assert here.permutation == alignment.permutation
    assert here.site_distances == dict(alignment.site_distances)


def test_a_load_takes_no_parameters_from_another_model(tmp_path):
    save(tmp_path / "g.zip", fitted(AutoNormal))
    with pyro.get_param_store().scope():
        other = AutoNormal(lambda: pyro.sample("u", dist.Normal(0, 1)))
        other()
    with pytest.raises(FormatError, match=r"differ in the parameters .*same model"):
        load(tmp_path / "g.zip", like=other)
    torch.set_default_dtype(torch.float32)
    with pytest.raises(FormatError, match=r"was saved as torch.float64, like= has torch.float32"):
        load(tmp_path / "g.zip", like=fitted(AutoNormal))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, changed):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in changed.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.95])
def test_truncated_files_are_refused(symmetry, tmp_path, fraction):
    path = tmp_path / "p.zip"
    save(path, symmetry.random(1))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(FormatError, match="truncated or damaged"):
        load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x"
    torch.save({"w": torch.zeros(2)}, path)  # a zip archive, too
    with pytest.raises(FormatError, match="not a pyro_align file"):
        load(path)
    path.write_text("hello")
    with pytest.raises(FormatError, match="not a pyro_align file"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    with pytest.raises(TypeError, match="cannot save a list"):
        save(path, [1])


def test_every_changed_byte_is_noticed(symmetry, tmp_path):
    path = tmp_path / "p.zip"
    p = symmetry.random(1)
    save(path, p)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(0, len(content), (60,), generator=generator).tolist():
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            assert load(path) == p  # a byte of the archive that means nothing
        except FormatError:
            continue


def test_tampered_files_are_refused(symmetry, tmp_path):
    from pyro_align.io import _digest

    path = tmp_path / "p.zip"
    save(path, symmetry.random(1))
    original = members(path)
    meta = json.loads(original["meta.json"])

    def tampered(change, *, sealed):
        changed = {**original}
        fresh = json.loads(original["meta.json"])
        change(fresh, changed)
        changed["meta.json"] = json.dumps(fresh).encode()
        if sealed:
            seal = changed.pop("sha256")
            assert seal
            changed["sha256"] = _digest(changed).encode()
        rewrite(path, changed)

    tampered(lambda m, c: m.update(scope="likelihood"), sealed=False)
    with pytest.raises(FormatError, match="do not match their digest"):
        load(path)
    tampered(lambda m, c: m.update(version=99), sealed=True)
    with pytest.raises(FormatError, match="version 99"):
        load(path)
    tampered(lambda m, c: m.update(kind="exploit"), sealed=True)
    with pytest.raises(FormatError, match="holds a 'exploit'"):
        load(path)
    # even with a valid digest, contents are checked like anything written by hand
    name = next(iter(meta["indices"]))
    other = next(n for n in meta["indices"] if n != name)
    tampered(lambda m, c: m["indices"].update({name: m["indices"][other]}), sealed=True)
    with pytest.raises(FormatError, match="not a valid permutation"):
        load(path)
    tampered(lambda m, c: m["indices"][name].update(array=999), sealed=True)
    with pytest.raises(FormatError, match="not a valid permutation"):
        load(path)
    tampered(lambda m, c: m["indices"][name].update(dtype="load"), sealed=True)
    with pytest.raises(FormatError, match="unknown dtype"):
        load(path)
    tampered(lambda m, c: m.pop("symmetry"), sealed=True)
    with pytest.raises(FormatError, match="not a valid permutation"):
        load(path)


def test_pickled_arrays_are_refused(symmetry, tmp_path):
    import io

    import numpy as np

    from pyro_align.io import _digest

    path = tmp_path / "p.zip"
    save(path, symmetry.random(1))
    changed = members(path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    changed["arrays/0.npy"] = buffer.getvalue()
    changed.pop("sha256")
    changed["sha256"] = _digest(changed).encode()
    rewrite(path, changed)
    with pytest.raises(FormatError, match="arrays cannot be read"):
        load(path)
