"""Pictures: what is drawn of a pipeline is what it is, and figures show what they were given."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import rai_chain
from rai_chain import accumulate, chain, clamp, from_torch, named_chain, partition, plot, scale
from rai_chain.core.drawing import CHAR, PAD, box_of

sys.path[:0] = [str(Path(__file__).parent / "links"), str(Path(__file__).parents[1] / "docs")]
import pictures  # noqa: E402
from test_laws import FACTORIES, make  # noqa: E402

every = pytest.mark.parametrize("name", sorted(FACTORIES))
SVG = "{http://www.w3.org/2000/svg}"


def texts(tx):
    """The lines of a drawing, each with its place and room."""
    root = ElementTree.fromstring(plot.pipeline(tx))
    width = float(root.get("width"))
    return [
        (t.text, float(t.get("x")), t.get("text-anchor"), width) for t in root.iter(SVG + "text")
    ]


def kept(notes):
    """The keys that a drawing names."""
    found = [re.fullmatch(r"keeps (.*?)(?: for each tensor| once)", note) for note in notes]
    return {key for match in found if match for key in match.group(1).split(", ")}


@every
def test_what_is_drawn_as_kept_is_what_a_state_has(name):
    tx = make(name)
    state = tx.init({"w": torch.rand(4, 4)})
    assert kept(box_of(tx, tx.names[0]).notes) == set(state or ()) - {"inner"}


@every
def test_no_line_leaves_the_picture(name):
    for text, x, anchor, width in texts(make(name)):
        half = CHAR * len(text) / 2
        right = x + (half if anchor else 2 * half)
        assert right <= width - PAD / 2 and (not anchor or x - half >= 0)


def test_every_link_of_a_pipeline_is_drawn_in_order_also_inside():
    tx = named_chain(
        ("bound", clamp(clamp_max=1.0)),
        ("rest", accumulate(chain(scale(2.0), rai_chain.top_k(1)), every_k=2)),
        ("parts", partition({"a": scale(3.0), "b": scale(4.0)}, lambda path: "a")),
    )
    said = [text for text, *_ in texts(tx)]
    parts = ["gradients", "bound: clamp(", "rest: accumulate(", "scale(grad_scale=2.0)"]
    parts += [
        "top_k(",
        "parts: partition(",
        "a.",
        "scale(grad_scale=3.0)",
        "b.",
        "scale(grad_scale=4",
    ]
    places = [next(i for i, text in enumerate(said) if text.startswith(part)) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("tx", "ends"),
    [
        (scale(2.0), ("gradients", "gradients, or updates to be added")),
        (rai_chain.adam(0.1), ("gradients", "updates, to be added to the parameters")),
        (rai_chain.l2_ball(1.0), ("parameters", "new parameters")),
        (from_torch(torch.optim.SGD, lr=0.1), ("gradients", "new parameters")),
        (chain(scale(1.0), rai_chain.box(0.0, 1.0)), ("gradients", "new parameters")),
    ],
)
def test_what_enters_and_leaves_is_said(tx, ends):
    said = [text for text, _, anchor, _ in texts(tx) if anchor]
    assert tuple(said) == ends


def test_a_drawing_is_the_same_in_each_process():
    code = """if True:
        from rai_chain import chain, multi_transform, plot, scale, top_q
        parts = {"a": top_q(0.5), "b": chain(scale(2.0), scale(1.0))}
        tx = multi_transform(parts, lambda path: "a")
        print(plot.pipeline(tx))"""
    drawings = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(drawings) == 1 and "top_q" in drawings.pop()


def test_a_drawing_escapes_what_it_shows():
    tx = named_chain(("<b>&", rai_chain.ema(0.5)), ("s", scale(lambda step: 1.0)))
    assert plot.pipeline(tx) == plot.pipeline(tx) == tx._repr_html_()
    assert "<b>&: ema(decay=0.5, debias=True)" in [text for text, *_ in texts(tx)]
    masked = rai_chain.masked(scale(1.0), lambda path: True)
    assert "0x" not in plot.pipeline(masked)


def test_an_empty_chain_is_an_arrow():
    assert [text for text, *_ in texts(chain())] == [
        "gradients",
        "gradients, or updates to be added",
    ]


def test_figures_say_what_they_need_and_a_pipeline_needs_nothing(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert plot.pipeline(scale(1.0)).startswith("<svg")
    with pytest.raises(ImportError, match=r"pip install \"rai_chain\[plot\]\""):
        plot.records({"a": torch.ones(2)})


def test_records_are_drawn_as_they_are():
    numbers = {"norm": torch.tensor([3.0, 2.0, float("nan")]), "share": torch.rand(2, 3)}
    figure = plot.records(numbers, log=True)
    norm, share = figure.axes
    torch.testing.assert_close(
        torch.tensor(norm.lines[0].get_ydata()), numbers["norm"].double(), equal_nan=True
    )
    assert len(share.lines) == 2 and norm.get_yscale() == "log"
    assert (norm.get_ylabel(), share.get_ylabel(), share.get_xlabel()) == ("norm", "share", "step")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_images_are_drawn_as_they_are(dtype):
    x = (3 * torch.rand(2, 5, 4)).to(dtype)
    drawn = [axes.images[0] for axes in plot.images({"a": x, "b": x[:, None]}).axes]
    assert len(drawn) == 4
    for image, shown in zip(drawn, [*x, *x], strict=True):
        assert torch.equal(torch.tensor(image.get_array().data), shown.float())
        assert image.get_clim() == (0.0, max(1.0, float(x.max())))


def test_what_is_below_zero_is_drawn_from_blue_to_red_around_zero():
    x = torch.tensor([[[-0.5, 0.25]]])
    assert plot.images({"a": x}).axes[0].images[0].get_clim() == (-0.5, 0.5)
    colours = plot.images({"a": torch.stack([x[0], x[0], x[0]])[None]}).axes[0].images[0]
    assert torch.equal(torch.tensor(colours.get_array().data)[0, :, 0], torch.tensor([0.0, 0.75]))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: plot.pipeline(3), "`tx` must be a pipeline or a link  Got: 3"),
        (lambda: plot.records({}), "`records` must have at least one entry  Got: {}"),
        (lambda: plot.records(3), "`records` must be a dict name -> numbers"),
        (lambda: plot.records({"a": torch.ones(())}), "Got: .* for 'a'"),
        (lambda: plot.records({"a": [1.0]}), "`records` must be a dict name -> numbers"),
        (lambda: plot.images({"a": torch.ones(2, 2)}), "`rows` must be a dict name -> images"),
        (lambda: plot.images({"a": torch.ones(0, 2, 2)}), "at least one  Got: {'a': 0}"),
        (lambda: plot.images({"a": torch.ones(2, 2, 2, 2)}), "1 or 3 channels"),
        (
            lambda: plot.images({"a": torch.ones(1, 2, 2), "b": torch.ones(2, 2, 2)}),
            "equally many images, at least one  Got: {'a': 1, 'b': 2}",
        ),
        (
            lambda: plot.images({"a": torch.ones(1, 2, 2)}, ["x", "y"]),
            "as many as images, 1  Got: 2",
        ),
    ],
)
def test_wrong_calls_are_refused_in_words(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


@every
def test_the_pages_can_draw_what_a_link_does(name):
    tx, g = make(name), pictures.sample()
    params = pictures.parameters(tx)
    given = pictures.asked(tx, g)
    tx.step(params, g, tx.init(params), **given)


def test_the_picture_of_the_readme_is_what_is_drawn():
    """Where the drawing was changed: write what this draws into the file."""
    tx = chain(rai_chain.top_q(q=0.33, param_ndim=None), clamp(clamp_max=2.8), scale(-1.0))
    shown = Path(__file__).parents[1] / "docs" / "_static" / "pipeline.svg"
    assert shown.read_text() == plot.pipeline(tx) + "\n"
