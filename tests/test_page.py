"""The page that compares runs, in a headless Chromium without a network."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from playwright.sync_api import expect, sync_playwright

from dist_resnet.reports.page import POINTS, Row, page

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = (
    """</script><img src=x onerror="document.title='injected'"> & 'quotes' """
    "{{data}} <!-- \u2028 \u00fcml\u00e4ut"
)
COLUMNS = ["optim.lr", "scaling.milestones", "top-1", "images/s"]


def chromium() -> str:
    """The path of a Chromium; it is installed where it is missing and this user may."""
    if not any(map(shutil.which, NAMES)):
        as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
        print("installing chromium", file=sys.stderr, flush=True)
        apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run(
            [*apt, "install", "-y", "--no-install-recommends", "chromium"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return next(filter(None, map(shutil.which, NAMES)))


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page of rows; at the end, whatever was done to it, it has made no request and no
    error."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    context.set_offline(True)
    tab, requests, errors = context.new_page(), [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    file = tmp_path / "page.html"

    def opened(rows, **options):
        file.write_text(page("A sweep", rows, **options), encoding="utf-8")
        tab.goto(file.as_uri())
        return tab

    yield opened
    context.close()
    assert not errors
    assert requests == [file.as_uri()]


def sweep() -> list[Row]:
    """Four runs; the third is not complete and has no result yet. Sorted as words, the speeds would
    be in another order."""
    values = [
        (0.1, "[20]", 0.91, 9_800),
        (0.4, "[20]", 0.87, 10_100.5),
        (0.1, "[30]", None, None),
        (0.4, "[30]", 0.9321, 101),
    ]
    return [
        Row(f"run{i}", dict(zip(COLUMNS, cells)), _curves(i), complete=cells[2] is not None)
        for i, cells in enumerate(values)
    ]


def _curves(i: int) -> dict[str, list[tuple[int, float]]]:
    final = 0.9 + i / 100
    return {
        "train/loss": [(s, 2 / s + i / 10) for s in range(1, 61)],
        "test/loss": [(30, 1.0 + i / 10), (60, 0.5 + i / 10)],
        "train/top1": [(s, s / 65) for s in range(1, 61)],
        "test/top1": [(30, 0.4 + i / 10), (60, final)],
        "lr": [(1, 0.1), (60, 0.01)],
    }


def names(tab) -> list[str]:
    return [
        text.removesuffix("not complete") for text in tab.locator("tbody th").all_text_contents()
    ]


def curve(tab, name: str, part: str = "test"):
    """The run's curve in the first chart."""
    run = tab.locator("tbody tr", has_text=name).get_attribute("data-run")
    return tab.locator("figure").first.locator(f'path[data-run="{run}"][data-part="{part}"]')


def hover(tab, path, share: float = 1.0) -> None:
    """Move the mouse onto the path: to its last point, or to a share of its length."""
    path.scroll_into_view_if_needed()
    x, y = path.evaluate(
        """(path, share) => {
        const point = path.getPointAtLength(share *
        path.getTotalLength()).matrixTransform(path.getScreenCTM());
        return [point.x, point.y];
    }""",
        share,
    )
    tab.mouse.move(x, y)


def test_table_sorts_numbers_and_keeps_unknown_values_last(show):
    tab = show(sweep(), changed=COLUMNS[:2])
    assert tab.title() == "A sweep"
    assert names(tab) == ["run3", "run0", "run1", "run2"]
    expect(tab.locator("thead th", has_text="top-1")).to_have_attribute("aria-sort", "descending")
    assert tab.locator("tbody tr").first.locator("td").all_text_contents()[1:] == [
        "0.4",
        "[30]",
        "93.21 %",
        "101",
    ]
    assert (
        tab.locator("tbody tr", has_text="not complete")
        .locator("th")
        .text_content()
        .startswith("run2")
    )
    speed = tab.get_by_role("button", name="images/s")
    speed.click()
    assert names(tab) == ["run3", "run0", "run1", "run2"]
    speed.click()
    assert names(tab) == ["run1", "run0", "run3", "run2"]
    assert tab.locator("[aria-sort]").count() == 1
    expect(tab.locator("thead th", has_text="images/s")).to_have_attribute(
        "aria-sort", "descending"
    )


def test_hover_names_the_nearest_point_and_highlights_its_run(show):
    tab = show(sweep(), changed=COLUMNS[:2])
    hover(tab, curve(tab, "run1"))
    expect(tab.locator("#tooltip")).to_have_text("run1test top-1 error: 9.00 %step 60")
    expect(curve(tab, "run1")).to_have_class(re.compile(r"\bon\b"))
    assert tab.locator("tbody tr.on").locator("th").text_content() == "run1"
    tab.mouse.move(2, 2)
    expect(tab.locator("#tooltip")).to_be_hidden()
    assert tab.locator(".on").count() == 0
    tab.get_by_label("show run2").uncheck()  # draws anew, with the mouse over the row
    tab.get_by_label("show run2").check()
    expect(curve(tab, "run2")).to_have_class(re.compile(r"\bon\b"))


def test_panels_of_metrics_thin_training_and_logarithm(show):
    tab = show(sweep())
    chart = tab.locator("figure").first
    expect(curve(tab, "run0", "train")).to_have_class("run thin")
    expect(curve(tab, "run0")).to_have_class("run bold")
    assert chart.get_by_role("combobox").locator("option").all_text_contents() == [
        "top-1 error, %",
        "loss",
        "lr",
    ]
    chart.get_by_role("combobox").select_option("loss")
    logarithmic = curve(tab, "run0").get_attribute("d")
    chart.get_by_label("log y").uncheck()
    assert curve(tab, "run0").get_attribute("d") != logarithmic
    hover(tab, curve(tab, "run3"))
    expect(tab.locator("#tooltip")).to_have_text("run3test loss: 0.8step 60")


def test_a_hidden_run_is_drawn_nowhere(show):
    tab = show(sweep(), changed=COLUMNS[:2])
    assert tab.locator("#parallel path.run").count() == 4
    tab.get_by_label("show run0").uncheck()
    assert curve(tab, "run0").count() == 0 and curve(tab, "run1").count() == 1
    assert tab.locator("#parallel path.run").count() == 3
    tab.get_by_label("show all runs").uncheck()
    assert tab.locator("path.run").count() == 0
    tab.get_by_label("show all runs").check()
    assert curve(tab, "run0").count() == 1


def test_parallel_coordinates_scales_and_hover(show):
    rates = [0.001, 0.01, 0.1]
    rows = [
        Row(f"run{i}", {"optim.lr": lr, "bn": i == 2, "top-1": 0.9 + i / 100}, {})
        for i, lr in enumerate(rates)
    ]
    tab = show(rows, changed=["optim.lr", "bn"])
    ticks = tab.locator("#parallel .tick")
    assert ticks.all_text_contents() == [
        "0.001",
        "0.01",
        "0.1",
        "false",
        "true",
        "90.00 %",
        "91.00 %",
        "92.00 %",
    ]
    low, middle, high = [float(ticks.nth(i).get_attribute("y")) for i in range(3)]
    assert low - middle == pytest.approx(middle - high)  # logarithmic
    hover(tab, tab.locator("#parallel .reach").first, 0.3)
    expect(tab.locator("#tooltip")).to_have_text("run2optim.lr: 0.1bn: truetop-1: 92.00 %")


def test_hostile_text_stays_text(show):
    rows = [Row(HOSTILE, {HOSTILE: HOSTILE, "top-1": 0.99}, _curves(7)), *sweep()]
    tab = show(rows, changed=[HOSTILE])
    assert tab.title() == "A sweep"
    assert tab.locator("img").count() == 0
    assert HOSTILE in names(tab)
    assert HOSTILE in tab.locator("tbody td").all_text_contents()
    hover(tab, tab.locator('path[data-part="test"]').first)
    expect(tab.locator("#tooltip")).to_contain_text(HOSTILE)


def test_one_run_that_has_not_begun(show):
    tab = show([Row("new", {"top-1": None}, {}, complete=False)], changed=["optim.lr"])
    assert names(tab) == ["new"]
    expect(tab.get_by_text("No curves yet.")).to_be_visible()
    for selector in ("#parallel", "#legend", "#tooltip"):
        expect(tab.locator(selector)).to_be_hidden()


def test_a_hundred_runs(show):
    tab = show([Row(f"run{i}", {"top-1": i / 100}, _curves(i % 9)) for i in range(100)])
    assert tab.locator('figure >> nth=0 >> path[data-part="test"]').count() == 100


def test_trials_of_a_search_are_coloured_by_how_far_they_got_and_its_picture_is_there(show):
    rows = [
        Row(row.name, row.cells | {"evaluations": n}, row.curves, row.complete)
        for row, n in zip(sweep(), (1, 1, None, 3))
    ]
    tab = show(rows, changed=COLUMNS[:2], pictures=[ROOT / "docs/quickstart.png"])
    assert tab.locator("#pictures img").evaluate("image => image.naturalWidth") > 500
    assert len(strokes(tab)) == 3  # one evaluation, three, and not known
    tab.locator("#colours select").select_option("top-1")
    assert len(strokes(tab)) == 4


def strokes(tab) -> set[str]:
    """The colours of the lines through the parallel coordinates."""
    paths = tab.locator("#parallel path.run").all()
    return {path.evaluate("path => getComputedStyle(path).stroke") for path in paths}


def test_long_curves_are_thinned_and_what_is_not_finite_is_left_out():
    points = [(step, 1 + math.sin(step)) for step in range(1, 20_001)]
    points[777], points[888] = (778, 50.0), (889, math.nan)
    text = page("", [Row("a", {"top-1": math.nan}, {"train/loss": points})])
    run = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["runs"][0]
    kept = run["curves"]["train/loss"]
    assert POINTS / 2 < len(kept) <= POINTS and kept == sorted(kept)
    assert [778, 50.0] in kept and kept[-1][0] == 20_000
    assert run["cells"]["top-1"] == "nan"
