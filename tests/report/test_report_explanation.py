"""The values that an explanation shows are those of the recipe, worked out by hand."""

import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))

from tiny_checkpoints import llama_config, llama_shapes, mixtral, piece, recipe, write_hollow

from mergekit.plan import plan_merge
from mergekit.recipe import Case, Constant, Filtered, Gradient, evaluate
from mergekit.report.explanation import Panel, explain, show_values
from mergekit.report.heatmap import draw_heatmaps
from mergekit.report.panels import grouped, heatmap_of, page_of, share_of

LAYERS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the equal models base, a, b and c of six layers."""
    folder, config = tmp_path_factory.mktemp("explained"), llama_config(layers=LAYERS)
    for name in ("base", "a", "b", "c"):
        write_hollow(folder / name, llama_shapes(config), config)
    return folder


def explained(text):
    return explain(plan_merge(text))


def panel(found, parameter, model=None):
    """The one panel of a parameter, and of a model."""
    wanted = None if model is None else str(model)
    (one,) = [one for one in found.panels if (one.parameter, one.model) == (parameter, wanted)]
    return one


def column(one, part):
    """The values of a part, from the first layer to the last."""
    values = [line.cells[part] for line in one.lines if line.layer is not None]
    assert all(len(own) == 1 for own in values)
    return [own[0] for own in values]


def outside(one):
    """Values by part, before and after the layers."""
    return {part: values for line in one.lines if line.layer is None for part, values in line.cells.items()}


# Values


def test_gradients_run_from_the_first_layer_to_the_last(root):
    parameters = {"t": [0, 0.5, 0.3]}
    found = explained(recipe("slerp", [root / "a"], base_model=str(root / "base"), parameters=parameters))
    t = panel(found, "t")
    by_hand = [0, 0.2, 0.4, 0.46, 0.38, 0.3]
    for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
        assert column(t, part) == pytest.approx(by_hand)
    assert outside(t) == {"model.embed_tokens": (0,), "model.norm": (0,), "lm_head": (0,)}
    gradient = Gradient((0, 0.5, 0.3))
    assert column(t, "mlp.up_proj") == [evaluate(gradient, "x", layer / 5, "float") for layer in range(LAYERS)]


FILTERED = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"filter": "layers.3.", "value": 0.9},
    {"value": 0.5},
]


def test_the_first_filter_that_matches_decides(root):
    text = recipe("slerp", [root / "a"], base_model=str(root / "base"), parameters={"t": FILTERED})
    t = panel(explained(text), "t")
    setting = Filtered(
        (
            Case("self_attn", Gradient((0, 0.5, 0.3, 0.7, 1))),
            Case("mlp", Gradient((1, 0.5, 0.7, 0.3, 0))),
            Case("layers.3.", Constant(0.9)),
            Case(None, Constant(0.5)),
        )
    )
    assert column(t, "input_layernorm") == [0.5, 0.5, 0.5, 0.9, 0.5, 0.5]
    assert column(t, "self_attn.k_proj")[:2] == pytest.approx([0, 0.4])
    for part in t.parts[1:-2]:
        names = [f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS)]
        by_hand = [evaluate(setting, name, layer / (LAYERS - 1), "float") for layer, name in enumerate(names)]
        assert column(t, part) == by_hand


def test_every_model_has_values_of_its_own(root):
    models = [(root / "a", {"weight": [0.1, 0.9]}), (root / "b", {"weight": 0.3, "density": 0.5}), root / "c"]
    text = recipe("ties", models, base_model=str(root / "base"), parameters={"weight": 0.7, "density": 0.8})
    found = explained(text)
    assert column(panel(found, "weight", root / "a"), "mlp.up_proj") == pytest.approx(
        [0.1 + 0.16 * k for k in range(6)]
    )
    assert panel(found, "weight", root / "b").values == (0.3,)
    assert panel(found, "weight", root / "c").values == (0.7,)
    assert [panel(found, "density", root / name).values for name in "abc"] == [(0.8,), (0.5,), (0.8,)]
    assert panel(found, "normalize").values == (True,)
    assert {one.model for one in found.panels} == {None, *(str(root / name) for name in "abc")}


def test_values_of_a_model_are_filtered_by_its_own_layers(root):
    shared = {"weight": [{"filter": "layers.4.", "value": 0.9}, {"value": 0.1}]}
    slices = [piece((root / "a", 3, 6), (root / "b", 0, 3))]
    found = explained(recipe("linear", slices=slices, parameters=shared))
    assert column(panel(found, "weight", root / "a"), "mlp.up_proj") == [0.1, 0.9, 0.1]
    assert column(panel(found, "weight", root / "b"), "mlp.up_proj") == [0.1, 0.1, 0.1]


def test_gradients_begin_anew_in_every_slice(root):
    slices = [
        piece((root / "a", 0, 4), (root / "base", 0, 4)),
        piece((root / "a", 2, 3), (root / "base", 2, 3), parameters={"t": 0.25}),
        piece((root / "a", 3, 6), (root / "base", 3, 6)),
    ]
    found = explained(recipe("slerp", slices=slices, base_model=str(root / "base"), parameters={"t": [0, 1]}))
    assert column(panel(found, "t"), "mlp.up_proj") == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.25, 0, 0.5, 1])
    said = dict(found.sentences)
    assert said["layers 0-3"] == f"layers 0-3 of {root / 'a'} and 0-3 of {root / 'base'}"
    assert said["layers 4"] == f"layers 2 of {root / 'a'} and 2 of {root / 'base'}"
    assert said["gradients"].startswith("from the first layer of each slice")


def test_experts_are_one_part(tmp_path):
    config, shapes = mixtral()
    pair = [write_hollow(tmp_path / name, shapes, config) for name in "ab"]
    weight = [{"filter": "experts.1.", "value": 0.9}, {"filter": "w2", "value": 0.3}, {"value": 0.5}]
    found = explained(recipe("linear", pair, parameters={"weight": weight}))
    one = panel(found, "weight", pair[0])
    cells = {part: values for line in one.lines if line.layer == 1 for part, values in line.cells.items()}
    assert cells["block_sparse_moe.experts.*.w1"] == (0.5, 0.9)
    assert cells["block_sparse_moe.experts.*.w2"] == (0.3, 0.9)
    assert show_values(cells["block_sparse_moe.experts.*.w2"]) == "0.3 to 0.9"


# Words


def test_words_name_the_models(root):
    found = explained(recipe("slerp", [root / "a"], base_model=str(root / "base"), parameters={"t": 0.5}))
    said = dict(found.sentences)
    assert said["t"] == f"t = 0 is {root / 'base'}, t = 1 is {root / 'a'}"
    assert (said["base"], said["models"]) == (str(root / "base"), str(root / "a"))
    assert said["tokens"] == f"by their numbers, as in {root / 'base'}: 64 rows"
    assert "gradients" not in said


def test_words_for_a_distance(root):
    text = recipe("nearswap", [root / "a"], base_model=str(root / "base"), parameters={"t": 0.5})
    assert dict(explained(text).sentences)["t"] == f"distance by which entries move towards {root / 'a'}"


def test_words_without_a_base(root):
    said = dict(explained(recipe("linear", [root / "a", root / "b"])).sentences)
    assert said["base"].startswith("none")
    assert said["models"] == f"{root / 'a'}, {root / 'b'}"


def test_tensors_that_the_method_does_not_merge_are_told(root):
    models = [root / "a", (root / "b", {"weight": 0.3})]
    found = explained(recipe("linear", models, embed_slerp=True))
    assert dict(found.sentences)["besides"] == "2 tensors merged by slerp"
    assert set(outside(panel(found, "weight", root / "b"))) == {"model.norm"}


# Pictures


def varied(root):
    models = [(root / "a", {"weight": [0.1, 0.9]}), (root / "b", {"weight": FILTERED})]
    return explained(recipe("ties", models, base_model=str(root / "base")))


def test_layers_of_equal_values_stand_in_one_line(root):
    weight = [{"filter": "layers.1.", "value": 0.8}, {"value": 0.2}]
    found = explained(recipe("linear", [root / "a", root / "b"], parameters={"weight": weight}))
    labels = [label for label, _ in grouped(panel(found, "weight", root / "a"))]
    assert labels == ["before", "0", "1", "2-5", "after"]


def test_flat_and_varied_panels_are_told_apart(root):
    found = varied(root)
    assert {one.parameter for one in found.varied} == {"weight"}
    assert len(found.varied) == 2
    constants = {one.title: one.constant for one in found.flat}
    assert constants["normalize"] == "true everywhere, as by default"


class Cells(HTMLParser):
    """Counts tags, keeps texts of cells, and holds every tag against its end."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.fetched = [], [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.texts.append(data)


def test_the_page_is_complete_in_itself(root):
    found = varied(root)
    cells, page = Cells(), page_of(found)
    cells.feed(page)
    cells.close()
    assert (cells.open, cells.fetched) == ([], [])
    assert "script" not in page
    lines = [line for one in found.varied for _, line in grouped(one)]
    assert cells.texts == [show_values(values) for line in lines for values in parts_in_order(found, line)]
    assert f"weight of {root / 'a'}" in page


def parts_in_order(found, line):
    one = next(one for one in found.varied if line in one.lines)
    return [line.cells[part] for part in one.parts if part in line.cells]


def test_names_in_a_page_are_text():
    one = Panel("t<b>", "a&b", "default", ("x",), (), 0.5)
    page = page_of(explanation(one))
    assert "t&lt;b&gt; of a&amp;b" in page
    assert "<b>" not in page


def explanation(*panels):
    from mergekit.report.explanation import Explanation

    return Explanation("linear", (), panels)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures(suffix, magic, root, tmp_path):
    file = tmp_path / f"map{suffix}"
    draw_heatmaps([heatmap_of(one) for one in varied(root).varied], file)
    assert file.read_bytes().startswith(magic)


def test_a_picture_has_a_row_for_each_layer(root):
    drawn = heatmap_of(panel(varied(root), "weight", root / "a"))
    assert list(drawn.rows) == ["before", *map(str, range(LAYERS)), "after"]
    assert drawn.values[1][drawn.columns.index("mlp.up_proj")] == pytest.approx(0.1)
    assert drawn.values[0][drawn.columns.index("mlp.up_proj")] is None


@pytest.mark.parametrize(
    ("values", "every", "share"),
    [
        ((0.5,), (0.5,), 0),
        ((0.2,), (0.1, 0.5), 0.25),
        ((True,), (False, True), 1),
        (("l2",), ("l1", "l2", "linf"), 0.5),
    ],
)
def test_shades(values, every, share):
    assert share_of(values, every) == pytest.approx(share)
