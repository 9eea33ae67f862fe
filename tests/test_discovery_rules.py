"""Every discovery rule alone: the operation commutes with all relabelings that its rule claims, on random shapes."""

import itertools
import warnings

import pytest
import torch
from rule_samplers import SAMPLERS, Case, Draw
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pyro_align.discovery import check_rule
from pyro_align.discovery.axes.checking import claims
from pyro_align.discovery.axes.terms import Uniform
from pyro_align.discovery.checking import Alone, distance
from pyro_align.discovery.registry import rule
from pyro_align.errors import SymmetryError

FEW, MANY = 6, 150
aten = torch.ops.aten

# Operations of which some swap of two indices is not claimed at small sizes: by part of the name, with the reason.
MISSED = {
    "pool": "positions inside one window could be swapped; positions are data",
    "upsample": "positions that no output looks at could be swapped; positions are data",
    "pad1d": "positions keep their order even where nothing is padded",
    "pad2d": "the same",
    "pad3d": "the same",
    "pixel_shuffle": "the same",
    "convolution": "positions that one window covers could be swapped with the kernel's",
    "arg": "what orders by value is opaque, and listed so that its user knows",
    "sort": "the same, where its places are read",
    "topk": "the same",
    "fft": "a transform of length two, or of real numbers, has mirror images",
    "bucketize": "boundaries that no entry lies between could be swapped",
    "searchsorted": "the same",
    "scatter": "indices that an index by chance does not name could be swapped",
    "pdist": "two rows make one pair",
    "segment": "entries of one segment could be swapped",
    "unfold": "positions that one window covers could be swapped; positions are data",
    "grid_sampler": "positions that no place looks at could be swapped",
    "flip": "an order of two is its own mirror image",
    "roll": "two rolled by one are swapped",
    "tril": "entries that are cut away could be swapped",
    "triu": "the same",
    "trace": "rows beyond the square could be swapped",
    "diagonal": "the same",
    "select": "the indices before and after the one selected are two sets",
    "slice": "indices that a step leaves out could be swapped",
    "index": "indices that an index by chance does not name could be swapped",
    "gather": "the same",
    "embedding": "the same",
}


def checked(case: Case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch thinks of a width of one
        return check_rule(
            case.operation,
            *case.args,
            constants=case.constants,
            outputs=case.outputs,
            trials=3 if case.checked else 0,
            **case.kwargs,
        )


def cases(name, count):
    return (SAMPLERS[name](Draw(f"{name} {seed}"), name) for seed in range(count))


def test_every_rule_has_a_sampler_and_names_an_operation():
    own = [
        n for n, function in rule.operations().items() if function.__module__.startswith("pyro_align.")
    ]  # not other tests'
    missing = sorted(set(own) - set(SAMPLERS))
    assert not missing, (
        f"the rules of {missing} are tested by nothing: add a function to tests/rule_samplers.py, decorated with "
        '@sampler("name", ...), that draws a random call of the operation'
    )
    assert not sorted(set(SAMPLERS) - set(own)), "samplers of operations that have no rule"
    for name in own:
        if not name.startswith("family."):
            space, packet = name.split(".")[:2]
            assert hasattr(getattr(torch.ops, space), packet), f"torch has no operation {name}"


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_rule_claims_only_what_holds(name):
    for case in cases(name, FEW):
        found = rule.find(case.operation)
        assert found is rule.operations()[name], f"{case} is another rule's"
        checked(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_rule_claims_only_what_holds_at_many_shapes(name):
    for case in cases(name, MANY):
        checked(case)


# -- operations by tag -------------------------------------------------------------------------------------------------


def tagged(tag):
    """Operators with a tag that take tensors and, beyond these, only arguments with defaults or plain numbers."""
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, name = full.partition("::")
        if space == "aten":
            packet, _, which = name.partition(".")
            operation = getattr(getattr(aten, packet), which or "default")
            if tag in operation.tags and not operation._schema.is_mutable and not random_or_out(operation):
                yield operation


def random_or_out(operation):
    return torch.Tag.nondeterministic_seeded in operation.tags or any(a.is_out for a in operation._schema.arguments)


def gives_tensors(operation):
    return all(str(given.type) == "Tensor" for given in operation._schema.returns)


def simple_call(operation, r, dtype):
    """A random call of an operator from its schema, or None where the schema is not simple."""
    shape = r.shape(0, 3)
    args, kwargs = [], {}
    for argument in operation._schema.arguments:
        kind = str(argument.type)
        if kind == "Tensor":
            value = r.tensor(*shape) if not args else r.stretched(shape)
            value = {torch.bool: value > 0, torch.int64: (value.abs() * 3 + 1).long()}.get(dtype, value)
        elif argument.has_default_value():
            continue
        elif kind in ("number", "float", "int"):
            value = 2
        else:
            return None
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return Case(operation, tuple(args), kwargs)


def first_that_runs(operation, seed):
    for dtype in (torch.float64, torch.int64, torch.bool):
        case = simple_call(operation, Draw(f"{operation} {seed}"), dtype)
        if case is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                operation(*case.args, **case.kwargs)
        except (RuntimeError, IndexError, ValueError, NotImplementedError):
            continue
        return case
    return None


def test_pointwise_operations():
    ran = []
    for operation in tagged(torch.Tag.pointwise):
        for seed in range(2):
            case = first_that_runs(operation, seed)
            if case is not None:
                assert checked(case).opaque is not gives_tensors(operation), case
                ran.append(str(operation))
    assert len(set(ran)) > 200, "hardly any of torch's pointwise operations could be sampled"


@pytest.mark.skipif(not hasattr(torch.Tag, "reduction"), reason="this PyTorch does not tag reductions")
def test_reductions():
    """No reduction that torch tags claims too much, and few have no rule."""
    ran, opaque = set(), set()
    for operation in tagged(torch.Tag.reduction):
        for seed in range(4):
            case = first_that_runs(operation, seed)
            if case is not None:
                ran.add(operation)
                if checked(case).opaque:
                    opaque.add(str(operation))
    assert len(ran) > 20
    assert opaque <= {"aten.argmax.default", "aten.argmin.default", "aten.linalg__powsum.default"}


# -- the check itself --------------------------------------------------------------------------------------------------


def test_a_claim_is_the_symmetry_of_inputs_and_output():
    claim = check_rule(aten.mm.default, torch.randn(4, 3), torch.randn(3, 2)).symmetry
    assert [" | ".join(map(str, axes)) for axes in claim.sites.values()] == [
        "input0 | input1",
        "input1 | input1[1]",
        "input0 | input1[1]",
    ]
    (nested,) = (
        a for a in check_rule(aten.sum.dim_IntList, torch.randn(4, 3), [1]).symmetry.atoms.values() if a.within
    )
    assert nested.size == 3, "each row's entries may be reordered by themselves"
    twice = torch.randn(4, 4)
    assert len(check_rule(aten.mm.default, twice, twice).symmetry.atoms) == 1
    used = check_rule(aten.max.dim, torch.randn(4, 3), 1, outputs=[0]).symmetry
    assert len(used.atoms) == 2, "the maximum does not say where it stood"
    assert check_rule(aten.argsort.default, torch.randn(3)).opaque


FALSE_RULES = {
    "a running sum of interchangeable entries": (aten.cumsum.default, ((3, 4), 1), lambda call, x, *_: x.axes),
    "sorted entries that still follow": (aten.sort.default, ((4,),), lambda call, x, *_: [list(x.axes), list(x.axes)]),
    "a product that sums over nothing": (
        aten.mm.default,
        ((3, 3), (3, 3)),
        lambda call, a, b: [a.axes[0], b.axes[1]],
    ),
    "a softmax that mixes nothing": (aten._softmax.default, ((3, 4), 1, False), lambda call, x, *_: x.axes),
    "an output that does not vary": (aten.exp.default, ((4,),), lambda call, x: [Uniform(4)]),
}


@pytest.mark.parametrize("what", FALSE_RULES)
def test_a_false_rule_is_caught(what, monkeypatch):
    operation, args, false = FALSE_RULES[what]
    monkeypatch.setitem(rule.rules, str(operation), false)
    values = [torch.randn(a) if isinstance(a, tuple) else a for a in args]
    with pytest.raises(SymmetryError, match=r"claims too much for input0 \(.*relabeling (atom '|its atoms, taken)"):
        check_rule(operation, *values)


def test_what_is_no_operator_or_has_several_overloads():
    with pytest.raises(TypeError, match=r"has overloads .* say which"):
        check_rule(aten.sum, torch.randn(3))
    with pytest.raises(TypeError, match="expected an operator"):
        check_rule(torch.sum, torch.randn(3))


# -- completeness ------------------------------------------------------------------------------------------------------


def overlooked(case):
    """Swaps of two indices on some axes of the inputs that the operation follows and the rule does not claim."""
    if not case.checked or case.constants or case.outputs is not None:
        return []
    alone = Alone(case.operation, case.args, case.kwargs)
    symmetry = claims(alone)[0][0]
    before, orbits = alone.run(alone.values), {name: orbit(symmetry, name) for name in alone.values}
    inputs = [(name, axis) for name, value in alone.values.items() for axis in range(value.ndim)]
    found = []
    for n in sorted({alone.values[name].shape[axis] for name, axis in inputs} - {1}):
        same = [place for place in inputs if alone.values[place[0]].shape[place[1]] == n]
        for count in range(1, min(len(same), 4) + 1):
            for places in itertools.combinations(same, count):
                for i, j in itertools.combinations(range(min(n, 3)), 2):
                    moved = swapped(alone.values, places, i, j)
                    claimed = all(torch.equal(orbits[name], swapped(orbits, places, i, j)[name]) for name, _ in places)
                    if claimed:
                        continue
                    after = alone.run(moved)
                    if all(follows(before[name], after[name], n, i, j) for name in before):
                        found.append((places, (i, j)))
    return found


@pytest.mark.parametrize("name", [name for name in sorted(SAMPLERS) if not any(part in name for part in MISSED)])
def test_no_swap_is_overlooked(name):
    for case in cases(name, 4):
        assert not overlooked(case), case


def orbit(symmetry, name):
    """For every entry of an input, the number of its orbit under the claimed group."""
    size = int(torch.Size(symmetry.shapes[name]).numel())
    rows = torch.arange(size).repeat(12)
    columns = torch.cat([symmetry.random(seed).flat_index(name) for seed in range(12)])
    graph = coo_array((torch.ones(len(rows)), (rows, columns)), shape=(size, size))
    return torch.as_tensor(connected_components(graph, directed=False)[1]).reshape(symmetry.shapes[name])


def swapped(values, places, i, j):
    out = dict(values)
    for name, axis in places:
        order = list(range(out[name].shape[axis]))
        order[i], order[j] = order[j], order[i]
        out[name] = out[name].index_select(axis, torch.tensor(order))
    return out


def follows(before, after, n, i, j):
    """Whether the output is the old one with the same two indices swapped on some of its axes."""
    axes = [axis for axis in range(before.ndim) if before.shape[axis] == n]
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, k) for k in range(len(axes) + 1))
    return any(distance(after, swapped({"": before}, [("", a) for a in subset], i, j)[""]) < 1e-9 for subset in subsets)
