"""Saving and loading: everything comes back, and what is not a file of ours is refused."""

import hashlib
import json
import subprocess
import sys
import textwrap

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
    init_to_sample,
)

from pyro_align.alignment.pair import align
from pyro_align.axes import Atom, Odd, Product, Rotated
from pyro_align.discovery import find_symmetry
from pyro_align.errors import FormatError, GuideError
from pyro_align.files import DTYPES, read_tensors, write_tensors
from pyro_align.guides import permute_guide, read_guide
from pyro_align.io import load, save
from pyro_align.objectives import Activations
from pyro_align.symmetry import SymmetrySpec
from pyro_align.symmetry.findings import Certificate, OpaqueOperation
from pyro_align.symmetry.group import Symmetry, same_group

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
    assert [f.name for f in tmp_path.iterdir() if "part" in f.name] == []


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


def test_a_plain_guide_stands_for_one_that_left_its_family(tmp_path):
    """Shares on a simplex: the aligned guide is wrapped, and whoever loads it has a plain one of the same model."""

    def mixture():
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        parts = dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(loc, 1.0))
        pyro.sample("y", parts.expand([4]).to_event(1), obs=torch.tensor([-1.0, 0.0, 2.0, 5.0]))

    guides = []
    for seed in range(3):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            guides.append(AutoNormal(mixture, init_loc_fn=init_to_sample))
            guides[-1]()
    a, b, like = guides
    alignment = align(a, b, find_symmetry(mixture))
    save(tmp_path / "a", alignment)
    with pytest.raises(TypeError, match="pass the guide that was relabeled, or another over the same model"):
        load(tmp_path / "a")
    noise = alignment.posterior.noise(3)
    found = load(tmp_path / "a", like=like).posterior.push(noise)
    assert all(torch.equal(v, found[k]) for k, v in alignment.posterior.push(noise).items())
    save(tmp_path / "b", same := align(b, b, find_symmetry(mixture)))
    assert same.permutation.is_identity
    assert load(tmp_path / "b", like=like).permutation.is_identity


@pytest.mark.usefixtures("few_draws")
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


def rewritten(path, change):
    """Changes a file's header, and its metadata, and seals it again."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header["__metadata__"]
    meta = json.loads(about["meta"])
    change(meta, header)
    about["meta"], about["sha256"] = json.dumps(meta), "0" * 64
    sealed = json.dumps(header, separators=(",", ":")).encode()
    blank = len(sealed).to_bytes(8, "little") + sealed + content[8 + size :]
    digest = hashlib.sha256(blank).hexdigest()
    path.write_bytes(blank.replace(b'"sha256":"' + b"0" * 64, f'"sha256":"{digest}'.encode(), 1))


def test_every_truncation_is_refused(symmetry, tmp_path):
    path = tmp_path / "p"
    save(path, symmetry.random(1))
    content = path.read_bytes()
    for length in {*range(200), *range(0, len(content), 37), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            load(path)
    path.write_bytes(content + b"0")
    with pytest.raises(FormatError):
        load(path)


def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "p"
    save(path, SYMMETRY.random(1))
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(FormatError):
            load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x"
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(FormatError, match="not a pyro_align file"):
        load(path)
    for text in ("hello", "", "{" * 3000, (2).to_bytes(8, "little").decode("latin1") + "{}"):
        path.write_text(text, encoding="latin1")
        with pytest.raises(FormatError, match="not a pyro_align file"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    with pytest.raises(TypeError, match="cannot save a list"):
        save(path, [1])


def test_tampered_files_are_refused(symmetry, tmp_path):
    """Even under a valid digest, contents are checked like anything written by hand."""
    path = tmp_path / "p"
    element = symmetry.random(1)
    name, other = list(element.indices)[:2]
    changes = {
        "version 99": lambda meta, header: header["__metadata__"].update(version="99"),
        "holds a 'exploit'": lambda meta, header: meta.update(kind="exploit"),
        "not a valid permutation .*no tensor 999": lambda meta, header: meta["indices"].update({name: 999}),
        "not a valid permutation": lambda meta, header: meta["indices"].update({name: meta["indices"][other]}),
        "not a valid permutation .*KeyError": lambda meta, header: meta.pop("symmetry"),
        "dtype V8; the format has bool, uint8": lambda meta, header: header["0"].update(dtype="V8"),
        "of dtype >I8": lambda meta, header: header["0"].update(dtype=">I8"),
        "shape .* has .* bytes": lambda meta, header: header["0"].update(shape=[2**40]),
        "begins at": lambda meta, header: header["0"].update(data_offsets=[-8, 0]),
        "cannot be read": lambda meta, header: header.update({"7": header["0"]}),
    }
    for message, change in changes.items():
        save(path, element)
        rewritten(path, change)
        with pytest.raises(FormatError, match=message):
            load(path)


def test_dtypes_outside_the_format_are_refused_by_name(tmp_path):
    with pytest.raises(FormatError, match=r"dtype torch.uint16; the format has bool"):
        write_tensors(tmp_path / "x", {}, [torch.zeros(2, dtype=torch.uint16)])
    tensors = [torch.ones(2, 3).to(dtype) for dtype in DTYPES.values()] + [torch.zeros(0, 4), torch.tensor(2.5)]
    write_tensors(tmp_path / "x", {"a": [1, None]}, tensors)
    meta, back = read_tensors(tmp_path / "x")
    assert meta == {"a": [1, None]}
    for here, there in zip(tensors, back, strict=True):
        assert here.dtype == there.dtype
        assert torch.equal(here, there)


def test_other_programs_can_look_into_a_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    write_tensors(tmp_path / "x", {}, [torch.arange(6.0).reshape(2, 3)])
    assert torch.equal(safetensors.load_file(tmp_path / "x")["0"], torch.arange(6.0).reshape(2, 3))


def test_what_a_load_needs_is_said(tmp_path):
    save(tmp_path / "g", fitted(AutoNormal))
    with pytest.raises(
        TypeError,
        match=r"of a AutoNormal \(locs.w1_unconstrained \(4, 2\).*AutoNormal over the same model that has run",
    ):
        load(tmp_path / "g")
    with pytest.raises(GuideError, match="call it once"):
        load(tmp_path / "g", like=AutoNormal(model))  # noqa: F821


def test_what_a_killed_run_left_is_cleaned_up(tmp_path):
    script = """
import os, signal, sys, torch
from pyro_align.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".mine.part").write_text("of another machine, perhaps at work")
    write_tensors(tmp_path / "y", {}, [])
    assert {path.name for path in tmp_path.iterdir()} == {"y", ".mine.part"}
