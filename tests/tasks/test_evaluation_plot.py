"""The plot of a sweep: well-formed, inside its frame, with holes where nothing is known."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tasks import storage
from tasks.evaluating import Estimate, evaluate
from tasks.evaluation_plot import HEIGHT, WIDTH, curve, render_plot
from tests.made_runs import make_run


def test_curve_leaves_out_what_is_unknown() -> None:
    unknown = Estimate(value=None, low=None, high=None)
    known = [Estimate(value=0.5, low=0.25, high=1.0), Estimate(value=1.0, low=1.0, high=1.0)]
    drawn = curve("F1", [(0.0, unknown), (0.15, known[0]), (0.3, known[1])])
    assert drawn.line == "230.0,150.0 460.0,0.0"
    assert drawn.band == "230.0,225.0 460.0,0.0 460.0,0.0 230.0,0.0"


@pytest.mark.filterwarnings("error")
def test_plot_is_svg_with_two_panels_of_three_curves(tmp_path: Path) -> None:
    degrees = {f"{n}.png": angle for n, angle in enumerate(range(0, 300, 9))}
    made = make_run(str(tmp_path), degrees)
    url = storage.join(made.workspace_url, "groups.csv")
    lines = ["path,group", *(f"{path},{n // 3}" for n, path in enumerate(degrees))]
    storage.publish_bytes(url, "\n".join(lines).encode())
    found = evaluate(url, run_id=made.run_id, workspace_url=made.workspace_url, with_sweep=True)
    image = ElementTree.fromstring(render_plot(found))
    names = "{http://www.w3.org/2000/svg}"
    lines_drawn = [line.attrib["points"].split() for line in image.iter(f"{names}polyline")]
    assert len(lines_drawn) == len(list(image.iter(f"{names}polygon"))) == 6
    for points in lines_drawn:
        for x, y in (point.split(",") for point in points):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= HEIGHT
    assert max(map(len, lines_drawn)) == len(found.sweep)
