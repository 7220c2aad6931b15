"""What editors and type checkers are told is what is true."""

import ast
import inspect

import pytest
from mypy import api
from stubs import STUBS

import rai_chain as rc


def read(text):
    """The imports of a module, in any order, and the rest of it."""
    nodes = ast.parse(text).body
    lines = {
        (node.level, node.module, a.name, a.asname)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for a in node.names
    }
    return lines, [ast.dump(node) for node in nodes if not isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.parent.name)
def test_the_stubs_are_current(path):
    """Else: `make stubs`."""
    (lines, rest), (ours, expected) = read(path.read_text()), read(STUBS[path]())
    assert lines <= ours and rest == expected  # the formatter drops imports that nothing uses


def test_signatures_show_types_and_true_defaults():
    shown = str(inspect.signature(rc.top_q))
    assert shown.startswith("(q: float | torch.Tensor | ") and "Schedule" in shown
    assert "Literal['tree']" in shown and " = -1 or the group's" in shown and "seed: int" in shown
    assert str(inspect.signature(rc.clamp)).startswith("(clamp_min: float | torch.Tensor | ")


WRONG = {
    "rc.top_q(qq=0.5)": 'Unexpected keyword argument "qq"',
    "rc.clamp(clamp_mx=1.0)": 'Unexpected keyword argument "clamp_mx"',
    "rc.top_q(0.5, param_ndim='row')": """incompatible type "Literal['row']\"""",
    "rc.chain(1, 2)": 'incompatible type "int"',
    "TopQGradientOptimizer([], q='a')": 'incompatible type "str"',
    "L1NormedGradientOptim([], div_by_zero_eps='1')": 'incompatible type "str"',
}
RIGHT = (
    "rc.chain(rc.top_q(0.5, param_ndim=None), rc.clamp(clamp_max=1.0)).optimizer([])",
    "rc.clamp(lambda step: -1.0 * step, {'w': 1.0})",
    "rc.adam(lr=0.1)",
    "rc.top_q(0.5, param_ndim='tree')",
    "TopQGradientOptimizer([], q=0.5, param_ndim='tree')",
    "TopQGradientOptimizer([], q=0.5, lr=0.1)",
)
IMPORTS = (
    "import rai_chain as rc",
    "from rai_chain.optim import L1NormedGradientOptim, TopQGradientOptimizer",
)


def test_a_type_checker_finds_what_is_wrong_and_nothing_else(tmp_path):
    file = tmp_path / "user.py"
    file.write_text("\n".join([*IMPORTS, *WRONG, *RIGHT]))
    said = [line for line in api.run([str(file)])[0].splitlines() if "user.py:" in line]
    for number, (line, message) in enumerate(WRONG.items(), 1 + len(IMPORTS)):
        assert any(f"user.py:{number}:" in text and message in text for text in said), line
    assert len({text.split(":")[1] for text in said if ": error:" in text}) == len(WRONG), said
