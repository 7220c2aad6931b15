"""How the site is built: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import latex2mathml.converter  # noqa: E402
import peers  # noqa: E402
import reference  # noqa: E402
import table  # noqa: E402
from docutils.nodes import SkipNode  # noqa: E402

import rai_chain  # noqa: E402

project = "rai_chain"
author = copyright = "the rai_chain authors"
version = release = rai_chain.__version__
extensions = ["myst_parser", "sphinx_gallery.gen_gallery"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["gallery/*", "_build", "api/pictures"]
default_role = "literal"
add_module_names = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "rai_chain"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
pygments_style = "default"
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "pictures",
    "filename_pattern": "/plot_",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "abort_on_example_error": True,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "image_srcset": ["2x"],
    "image_scrapers": ("pictures", "matplotlib"),
}


def inline(writer, node):
    """A formula as MathML, which browsers draw themselves."""
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise SkipNode


def display(writer, node):
    """A formula on a line of its own."""
    writer.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline, None), block_renderers=(display, None)
    )
    reference.write()
    table.write()
    peers.write()
