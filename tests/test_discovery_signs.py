"""Signs: the rules one by one, the choice among several, and what comes out where there are none."""

import math
import warnings
from collections import Counter

import pytest
import torch
from problems import PROBLEMS, bayesian, normal, observe
from rule_samplers import SAMPLERS, Draw
from torch import nn

from pyro_align import find_symmetry
from pyro_align.axes import leaves
from pyro_align.discovery import check_sign_rule, sign_rule
from pyro_align.discovery.axes.assemble import assemble
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.registry import rule
from pyro_align.discovery.signs import add_signs
from pyro_align.discovery.signs.parity import EVEN, ZERO, Equations, Parities
from pyro_align.discovery.source import Source
from pyro_align.errors import SymmetryError

aten = torch.ops.aten
FEW, MANY = 4, 60

# -- rules ------------------------------------------------------------------------------------------------------------


def checked(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch thinks of a width of one
        trials = 4 if case.checked else 0
        options = {"constants": case.constants, "outputs": case.outputs, "trials": trials}
        return check_sign_rule(case.operation, *case.args, **options, **case.kwargs)


def known_to_samplers():
    """Names of samplers of operations with a rule of signs."""
    names = []
    for name, draw in SAMPLERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases = [draw(Draw(f"{name} {seed}"), name) for seed in range(2)]
        if any(sign_rule.find(case.operation) for case in cases):
            names.append(name)
    return names


SHARED = known_to_samplers()


@pytest.mark.parametrize("name", SHARED)
def test_a_rule_claims_only_what_holds(name):
    for seed in range(FEW):
        checked(SAMPLERS[name](Draw(f"{name} {seed}"), name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_a_rule_claims_only_what_holds_at_many_shapes(name):
    for seed in range(FEW, MANY):
        checked(SAMPLERS[name](Draw(f"{name} {seed}"), name))


def entrywise(r, packet, name):
    """A random call of an elementwise operation: tensors that broadcast, numbers where it takes numbers."""
    operation = getattr(packet, name)
    shape = r.shape(0, 3)
    args = []
    for argument in operation._schema.arguments:
        if argument.kwarg_only or (argument.has_default_value() and argument.name not in ("min", "max", "min_val")):
            continue
        kind = str(argument.type)
        if kind == "Tensor":
            value = r.tensor(*shape) if not args else r.stretched(shape)
            args.append(value > 0 if argument.name in ("mask", "condition") else value)
        elif argument.name in ("min", "min_val"):
            args += [-0.7, 0.7]
        elif argument.name != "max":
            args.append(r.choice((0, 1, 2, 3, -1)) if argument.name == "exponent" else 0.5)
    return operation, args


SAMPLED_BY_OVERLOAD = {"aten.norm.Scalar", "aten.std", "aten.var", "aten.std_mean", "aten.var_mean"}
ENTRYWISE = sorted(set(sign_rule.operations()) - set(SAMPLERS) - SAMPLED_BY_OVERLOAD)


@pytest.mark.parametrize("name", ENTRYWISE)
def test_a_rule_of_an_elementwise_operation_claims_only_what_holds(name):
    space, packet, *which = name.split(".")
    packet = getattr(getattr(torch.ops, space), packet)
    for overload in which or [o for o in packet.overloads() if "out" not in o.lower() and "_mode" not in o]:
        if overload in ("complex", "float", "int", "bool", "str", "float_int", "int_float", "float_complex"):
            continue  # of numbers, not tensors
        for seed in range(FEW):
            operation, args = entrywise(Draw(f"{name} {seed}"), packet, overload)
            if any(isinstance(a, torch.Tensor) for a in args):
                constants = (len([a for a in args if isinstance(a, torch.Tensor)]) - 1,) if seed % 2 else ()
                check_sign_rule(operation, *args, constants=constants)


@pytest.mark.parametrize("exponent", [-3, -2, -1, 0, 1, 2, 3, 0.5, 1.5])
def test_powers(exponent):
    x = torch.rand(2, 3) + 0.5
    free = check_sign_rule(aten.pow.Tensor_Scalar, x, exponent).free
    assert free == (6 if exponent == int(exponent) else 0)
    power = torch.full((), float(exponent))
    assert check_sign_rule(aten.pow.Tensor_Tensor, x, power, constants=(1,)).free == free


@pytest.mark.parametrize(
    ("operation", "args", "free"),
    [
        (aten.mul.Tensor, (torch.randn(2, 3), torch.randn(3)), 9),
        (aten.add.Tensor, (torch.randn(2, 3), torch.randn(3)), 3),  # each column with its offset
        (aten.sub.Tensor, (torch.randn(2, 3), torch.randn(2, 3)), 6),
        (aten.sum.dim_IntList, (torch.randn(2, 3), [0]), 3),
        (aten.prod.dim_int, (torch.randn(2, 3), 0), 6),
        (aten.bmm.default, (torch.randn(2, 2, 3), torch.randn(2, 3, 2)), 12),
        (aten.cos.default, (torch.randn(4),), 4),
        (aten.exp.default, (torch.randn(4),), 0),
        (aten._softmax.default, (torch.randn(2, 3), -1, False), 0),
        (aten.amax.default, (torch.randn(2, 3), [0]), 0),
        (aten.clamp.default, (torch.randn(4), -1, 1), 4),
        (aten.clamp.default, (torch.randn(4), -1, 2), 0),
        (aten.clamp.default, (torch.randn(4), -1), 0),
        (aten.var_mean.correction, (torch.randn(2, 3), [0]), 3),
        (aten.linalg_vector_norm.default, (torch.randn(2, 3),), 6),
        (aten.lt.Tensor, (torch.randn(3), torch.randn(3)), 0),
        (aten.eq.Tensor, (torch.randn(3), torch.randn(3)), 3),
        (aten.linalg_inv_ex.default, (torch.randn(3, 3),), 5),
        (aten.linalg_cholesky_ex.default, (torch.eye(3) + 0.1,), 2),
        (aten.embedding.default, (torch.randn(4, 3), torch.tensor([0, 2])), 3),
    ],
)
def test_what_a_rule_leaves_free(operation, args, free):
    """Not less than there is: a rule may not miss what these operations allow."""
    assert check_sign_rule(operation, *args).free == free


def test_a_constant_of_zeros_goes_along_with_any_sign():
    x, zeros, ones = torch.randn(3), torch.zeros(3), torch.ones(3)
    assert check_sign_rule(aten.add.Tensor, x, zeros, constants=(1,)).free == 3
    assert check_sign_rule(aten.add.Tensor, x, torch.tensor([0.0, 0.0, 1.0]), constants=(1,)).free == 2
    assert check_sign_rule(aten.add.Tensor, x, ones, constants=(1,)).free == 0
    assert check_sign_rule(aten.add.Tensor, x, zeros).free == 3  # not known to be zero: they change sign together
    assert check_sign_rule(aten.cat.default, [x, zeros], 0, constants=(1,)).free == 3


def test_an_index_that_is_not_known_may_point_anywhere():
    x, index = torch.randn(4, 2), torch.tensor([0, 3])
    assert check_sign_rule(aten.index_select.default, x, 0, index, constants=(1,)).free == 8
    assert check_sign_rule(aten.index_select.default, x, 0, index).free == 2  # a column at a time


@pytest.fixture
def rule_of(monkeypatch):
    """Replaces a rule for one test."""
    return lambda name, function: monkeypatch.setitem(sign_rule.rules, name, function)


@pytest.mark.parametrize(
    ("operation", "args", "rule"),
    [
        (aten.exp.default, (torch.randn(3),), lambda call, x: x),
        (aten.tanh.default, (torch.randn(3),), lambda call, x: call.even()),
        (aten.add.Tensor, (torch.randn(3), torch.randn(3)), lambda call, a, b: a),
        (aten.sum.default, (torch.randn(3),), lambda call, x: call.even()),
        (aten.exp.default, (torch.randn(3),), lambda call, x: call.zero()),
    ],
)
def test_a_rule_that_claims_too_much_is_found_out(rule_of, operation, args, rule):
    name = str(operation)
    rule_of(name, rule)
    with pytest.raises(SymmetryError, match=f"the rule of signs of {name} claims too much for input0"):
        check_sign_rule(operation, *args)


def test_a_rule_of_ones_own():
    @torch.library.custom_op("signs_test::root", mutates_args=())
    def root(x: torch.Tensor) -> torch.Tensor:
        return x.sign() * x.abs() ** (1 / 3)

    root.register_fake(torch.empty_like)

    def model(x):
        observe(root(x @ normal("w1", 4, 3).T) @ normal("w2", 2, 4).T)

    try:
        rule("signs_test.root")(lambda call, x: x.axes)
        assert not find_symmetry(model, torch.randn(5, 3), signs=True).signed
        assert check_sign_rule(root, torch.randn(3)).opaque
        sign_rule("signs_test.root")(lambda call, x: x)
        assert len(find_symmetry(model, torch.randn(5, 3), signs=True).signed) == 1
        assert check_sign_rule(root, torch.randn(3)).free == 3
    finally:
        rule.rules.pop("signs_test.root", None)
        sign_rule.rules.pop("signs_test.root", None)


# -- equations --------------------------------------------------------------------------------------------------------


def test_solutions_are_all_solutions():
    generator = torch.Generator().manual_seed(0)
    for unknowns in range(1, 8):
        rows = torch.randint(0, 1 << unknowns, (4,), generator=generator).tolist()
        equations = Equations()
        for row in rows:
            equations.require(row)
        basis = equations.solutions(unknowns)
        span = {0}
        for vector in basis:
            span |= {vector ^ other for other in span}
        right = {v for v in range(1 << unknowns) if all((v & row).bit_count() % 2 == 0 for row in rows)}
        assert span == right
        assert len(span) == 1 << len(basis)


def test_many_parities_are_told_apart_without_a_table_of_all_pairs():
    """More different parities than a table of pairs would hold."""
    parities = Parities()
    numbers = torch.tensor([parities.number(k) for k in range(1, 3001)], dtype=torch.int32)
    both = parities.multiply(numbers, numbers.flip(0))
    assert [parities.sums[n] for n in both[:50].tolist()] == [k ^ (3001 - k) for k in range(1, 51)]
    assert parities.multiply(numbers, numbers).unique().tolist() == [EVEN]
    assert not parities.equations.rows


def test_contraction_is_that_of_the_entries():
    """Classes of equal rows change nothing: the same as adding up all products."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        quick, slow = Parities(), Parities()
        i, j, k = torch.randint(1, 5, (3,), generator=generator).tolist()
        left, right = (torch.randint(0, 4, s, generator=generator) for s in ((i, k), (k, j)))
        out = []
        for parities in (quick, slow):
            table = torch.tensor([ZERO, EVEN, parities.number(1), parities.number(2)], dtype=torch.int32)
            a, b = table[left], table[right]
            if parities is quick:
                found = parities.contract(a, "ik", b, "kj", "ij")
            else:
                found = parities.alike(parities.multiply(a[:, None], b.T[None]), [2]).squeeze(2)
            # parities that the equations make equal may stand for each other
            out.append(
                [
                    [None if n == ZERO else parities.equations.reduce(parities.sums[n]) for n in row]
                    for row in found.tolist()
                ]
            )
        assert quick.equations.rows == slow.equations.rows
        assert out[0] == out[1]


# -- the answer -------------------------------------------------------------------------------------------------------


def odd_places(symmetry):
    return Counter(a.name for terms in symmetry.sites.values() for t in terms for a in leaves(t) if a.odd)


def test_without_signs_nothing_changes():
    for name in ("functional_mlp", "lstm", "factor_analysis"):
        model, args = PROBLEMS[name].build()
        plain, again = find_symmetry(model, *args), find_symmetry(model, *args, signs=True)
        assert not plain.signed
        assert not odd_places(plain)
        assert list(plain.atoms) == list(again.atoms)
        assert [str(t) for s in plain.sites.values() for t in s] == [
            str(t).replace("±", "") for s in again.sites.values() for t in s
        ]


def test_signs_are_counted_and_printed():
    model, args = PROBLEMS["functional_mlp"].build()
    symmetry = find_symmetry(model, *args, signs=True)
    assert symmetry.log_order == pytest.approx(math.log(math.factorial(5) * 2**5))
    assert "±w1 | fixed 3" in str(symmetry)
    assert "fixed 2 | ±w1" in str(symmetry)


def test_of_several_ways_the_one_that_turns_most_entries_is_taken():
    """Two layers with a gain between them and nothing else: the weights, not the gain."""

    def model(x, n, m):
        h = (x[:, :n] @ normal("w1", 4, n).T) * normal("gain", 4)
        observe(h @ normal("w2", m, 4).T)

    def turned(n, m):
        symmetry = find_symmetry(model, torch.randn(5, 3), n, m, signs=True)
        return {s for s, terms in symmetry.sites.items() for t in terms for a in leaves(t) if a.odd and a.size > 1}

    assert turned(3, 2) == {"w1", "w2"}
    assert turned(1, 2) == {"w1", "w2"}


def test_a_sign_that_nested_atoms_make_is_not_counted_twice():
    """Turning a head's queries and keys is turning all of its dimensions."""
    model, args = PROBLEMS["attention_without_biases"].build()
    symmetry = find_symmetry(model, *args, signs=True)
    heads = [name for name, atom in symmetry.atoms.items() if not atom.within]
    assert len(heads) == 1
    assert not set(heads) & symmetry.signed


def test_a_sign_of_an_outer_atom_that_is_more_than_those_of_the_nested_ones():
    """Rotary embeddings mix a head's dimensions, so that only the whole head may change sign."""
    model, args = PROBLEMS["rotary_attention"].build()
    symmetry = find_symmetry(model, *args, signs=True)
    outer = next(name for name, atom in symmetry.atoms.items() if not atom.within)
    assert {
        s for s in symmetry.sites if any(a.name == outer and a.odd for t in symmetry.sites[s] for a in leaves(t))
    } == {
        "q.weight",
        "q.bias",
        "k.weight",
        "k.bias",
    }


def test_parities_do_not_depend_on_the_default_device():
    """On ``meta``, a tensor made without naming a device has no values, and looking at it fails."""
    model, args = PROBLEMS["lstm"].build()
    expected = find_symmetry(model, *args, signs=True)
    source = Source(model, args, {}, scope="joint", parameters=False, seed=0)
    traced = source.trace()
    inference = Inference(traced)
    symmetry = assemble(inference, scope="joint")
    with torch.device("meta"):
        found = add_signs(symmetry, inference, real=source.real_sites(traced))
    assert dict(found.sites) == dict(expected.sites)


def test_signs_in_single_precision():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).float()
    assert len(find_symmetry(net, torch.randn(5, 3, dtype=torch.float32), signs=True).signed) == 1


def test_signs_of_a_likelihood_and_of_a_joint():
    """A prior that is not symmetric takes the signs away, unless it is left out."""

    def model(x):
        import pyro
        import pyro.distributions as dist

        w1 = pyro.sample("w1", dist.Normal(0.5, 1.0).expand([4, 3]).to_event(2))
        observe(torch.tanh(x @ w1.T) @ normal("w2", 2, 4).T)

    x = torch.randn(5, 3)
    assert not find_symmetry(model, x, signs=True).signed
    assert len(find_symmetry(model, x, signs=True, scope="likelihood").signed) == 1


def test_a_false_rule_does_not_pass_the_certificate(rule_of):
    rule_of("aten.relu", lambda call, x: x)
    model = bayesian(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(SymmetryError, match="changes the log joint"):
        find_symmetry(model, torch.randn(5, 3), signs=True)
