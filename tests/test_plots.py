"""Figures: what is drawn, in which axes; nothing is shown."""

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot")

from pyro_align import Symmetry, plots  # noqa: E402
from pyro_align.axes import Odd  # noqa: E402
from pyro_align.barrier.result import Barrier  # noqa: E402
from pyro_align.losses.curve import Curve  # noqa: E402

LOSSES = ("expected_nll", "negative_elbo", "error_rate")


def make(height=1.0, seed=0):
    rng, taus = np.random.default_rng(seed), np.linspace(0, 1, 7)
    bump = height * np.sin(np.pi * taus)[:, None]
    curves = {
        (e, loss): Curve(e, loss, taus, bump + 0.05 * rng.standard_normal((7, 8)))
        for e in ("train", "test")
        for loss in LOSSES
    }
    stats = np.zeros((7, 8))
    two = {"train": stats, "test": stats}
    return Barrier(curves, taus, stats, stats, two, dict.fromkeys(two, 5), 1.0, 0, True)


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a figure was shown"))
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_a_curve_with_chord_band_and_ends():
    curve = make()["negative_elbo"]
    _, ax = plt.subplots()
    assert plots.plot_curve(curve, ax=ax, label="here") is ax
    assert np.array_equal(lines(ax)["here"].get_ydata(), curve.value)
    drawn = [line.get_ydata() for line in ax.get_lines()]
    assert any(np.array_equal(y, curve.chord) for y in drawn)
    assert any(np.array_equal(y, curve.value[[0, -1]]) for y in drawn)
    band, (area,) = curve.band(), ax.collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert np.isclose(heights.max(), (curve.chord + band.upper).max())
    assert ax.get_ylabel() == "nats per datum"
    assert "τ" in ax.get_xlabel()


def test_panels_of_one_barrier():
    axes = make().plot()
    assert axes.shape == (2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["expected NLL", "negative ELBO", "error rate"]
    assert axes[0, 2].get_ylabel() == "fraction of data"
    assert make().plot(losses="negative_elbo", evaluation="test").shape == (1, 1)


def test_one_axes_for_one_loss_and_for_several():
    _, (left, right) = plt.subplots(1, 2)
    barrier = make()
    assert barrier.plot(left, losses="negative_elbo") is left
    assert any(np.array_equal(line.get_ydata(), barrier["negative_elbo"].value) for line in left.get_lines())
    assert barrier.plot(right) is right
    assert np.array_equal(lines(right)["negative ELBO"].get_ydata(), barrier["negative_elbo"].excess)
    assert "error rate" in right.get_ylabel()


def test_before_and_after():
    before, after = make(2.0), make(0.1, seed=1)
    axes = plots.plot_before_after({"before": before, "after": after}, losses=["negative_elbo", "error_rate"])
    assert axes.shape == (2, 2)
    (low, high), found = axes[0, 0].get_ylim(), lines(axes[0, 0])
    labels = [text.get_text() for text in axes[0, 0].get_legend().get_texts()]
    assert labels[0] == f"before: {before['negative_elbo'].text()}"
    assert low <= after["negative_elbo"].value.min()
    assert high >= before["negative_elbo"].value.max()
    colors = {found[label].get_color() for label in labels}
    styles = {found[label].get_linestyle() for label in labels}
    assert len(colors) == len(styles) == 2, "told apart without color as well"
    given = plt.subplots(2, 2)[1]
    assert (
        plots.plot_before_after({"b": before}, losses=["negative_elbo", "error_rate"], axes=given)[1, 1] is given[1, 1]
    )


def test_figures_can_be_rendered(tmp_path):
    axes = plots.plot_before_after({"before": make(2.0), "after": make(0.1)})
    axes[0, 0].figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_wrong_names():
    with pytest.raises(ValueError, match=r"no loss \['nll'\]"):
        make().plot(losses="nll")
    with pytest.raises(ValueError, match=r"no data set \['valid'\]"):
        make().plot(evaluation="valid")
    with pytest.raises(ValueError, match="got no barrier"):
        plots.plot_before_after({})
    with pytest.raises(ValueError, match="need as many axes"):
        plots.plot_before_after({"a": make()}, axes=plt.subplots(1, 2)[1])


def attention():
    packed = [("head", "query"), ("head", "query"), ("head", "value")]
    return Symmetry.from_axes(
        {"qkv": (packed, 5), "out": (5, ("head", "value")), "scale": ("head",), "bias": (5,), "temperature": ()},
        shapes={"qkv": (36, 5), "out": (5, 12), "scale": (3,), "bias": (5,), "temperature": ()},
        within={"query": "head", "value": "head"},
    )


def words(ax):
    return [text.get_text() for text in ax.texts]


def dots(ax, atom):
    """The rows at which an atom's line has a dot."""
    (line,) = (line for line in ax.get_lines() if line.get_label() == atom)
    return list(line.get_ydata())


def test_a_symmetry_by_boxes_and_dots():
    symmetry = Symmetry.from_axes(
        {"w1": ("hidden", None), "b1": ("hidden",), "w2": (None, "hidden")},
        shapes={"w1": (5, 3), "b1": (5,), "w2": (2, 5)},
    )
    ax = symmetry.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["w1", "b1", "w2"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["hidden: 5"]
    assert dots(ax, "hidden") == [0, 1, 2]
    assert sorted(words(ax)) == ["2", "3", "[0]", "[1]", "a", "a", "a", "a"], "three boxes and one above the line"
    assert "1 free atom, log order 4.787 nats" in ax.get_title(loc="left")
    top, bottom = ax.get_ylim()
    assert top > bottom, "the first site stands above the last"


def bounds(patch):
    """Left, bottom, width and height; older matplotlib draws spans as polygons."""
    return tuple(patch.get_path().get_extents(patch.get_patch_transform()).bounds)


def test_products_sums_and_nested_atoms():
    ax = attention().plot()
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["head: 3", "query: 4 in each a", "value: 4 in each a"]
    assert dots(ax, "head") == [0, 1, 2]
    assert dots(ax, "query") == [0]
    assert dots(ax, "value") == [0, 1]
    assert words(ax).count("+") == 2
    assert "×" not in words(ax), "a nested atom's box stands inside its outer atom's"
    assert {"3", "2", "scalar"} <= set(words(ax)), "head stands three times in qkv, query twice"
    boxes = {bounds(patch): patch for patch in ax.patches}
    color = {
        name: line.get_color() for name in ("head", "query") for line in ax.get_lines() if line.get_label() == name
    }
    outer, inner = (
        min(
            (
                b
                for b, patch in boxes.items()
                if patch.get_facecolor() == plt.matplotlib.colors.to_rgba(color[name]) and b[1] > -0.5
            )
        )
        for name in ("head", "query")
    )
    assert outer[0] < inner[0]
    assert inner[0] + inner[2] < outer[0] + outer[2]
    assert outer[1] < inner[1]
    assert inner[1] + inner[3] < outer[1] + outer[3]
    assert "nested" not in ax.get_xlabel()
    assert "frame" in ax.get_xlabel()


def test_a_flattened_product_and_signs():
    symmetry = Symmetry.from_axes({"w": (Odd("unit"), ("pixel", 3))}, shapes={"w": (4, 6)})
    ax = symmetry.plot()
    assert {"×", "±a", "b", "3"} <= set(words(ax))
    assert "signs" in ax.get_xlabel()


def test_in_given_axes_and_some_sites_only():
    _, given = plt.subplots()
    assert attention().plot(given, sites=["out", "bias"]) is given
    assert [label.get_text() for label in given.get_yticklabels()] == ["out", "bias"]
    assert [label.get_text() for label in given.get_xticklabels()] == ["head: 3", "value: 4 in each a"]
    with pytest.raises(ValueError, match=r"no site \['w9'\]"):
        attention().plot(sites="w9")
    with pytest.raises(ValueError, match="no site to draw"):
        attention().plot(sites=[])


def test_a_deep_network_gets_a_high_figure_with_one_line_per_atom():
    widths = {f"layer{i}.weight": (f"h{i}", f"h{i - 1}" if i else 3) for i in range(30)}
    shapes = dict.fromkeys(widths, (4, 4)) | {"layer0.weight": (4, 3)}
    ax = Symmetry.from_axes(widths, shapes=shapes).plot()
    assert ax.figure.get_figheight() > 8
    assert words(ax).count("ab") >= 1, "letters go on after z"
    places = [line.get_xdata()[0] for line in ax.get_lines() if line.get_label().startswith("h")]
    assert len(places) == len(set(places)) == 30
    small = Symmetry.from_axes({"w": ("h", 2)}, shapes={"w": (4, 2)}).plot()
    assert small.figure.get_figheight() < 3


def test_a_symmetry_without_atoms():
    ax = Symmetry.from_axes({"w": (None, 2)}, shapes={"w": (4, 2)}).plot()
    assert ax.get_title(loc="left").startswith("0 free atoms")
    assert {"4", "2"} <= set(words(ax))


@pytest.mark.parametrize("kind", ["protanopia", "deuteranopia"])
def test_neighboring_atoms_differ_to_the_color_blind(kind):
    """Vienot, Brettel & Mollon (1999): linear RGB as two kinds of dichromats see it; distances in CIE Lab."""
    from pyro_align.reporting.symmetry_figure import COLOURS

    matrix = {
        "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    }[kind]
    srgb = np.array([plt.matplotlib.colors.to_rgb(color) for color in COLOURS])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(matrix), 0, 1) @ np.transpose(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = xyz / [0.9505, 1.0, 1.089]
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    lab = np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], -1)
    distance = np.linalg.norm(lab - np.roll(lab, 1, axis=0), axis=-1)
    assert distance.min() > 15, distance
