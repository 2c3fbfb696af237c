"""Test the page in headless Chromium against projections in numpy, and its parts against their definitions."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser, Page
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from bevreshape.analysis.costs import ring
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reporting.explorer import Cells, Explorer, ExplorerEntry, Scene, View, choose_cells
from bevreshape.reporting.explorer_data import explorer_data, image_uri, pack, quantise
from bevreshape.reporting.page import Chart, Claim, Report, Section, Table, render, write
from bevreshape.reshapers import IPM, FeatureShape

SIZE = (32, 64)
STRIDE, OFFSET = 4, 1.5
GRIDS = {1: BEVGrid((1.0, 11.0), (-4.0, 5.0), 1.0), 6: BEVGrid((-6.0, 6.0), (-5.0, 7.0), 1.0)}
CLASSES = ("road", "car")
ORDER = torch.randperm(SIZE[0] * SIZE[1] // STRIDE**2, generator=torch.Generator().manual_seed(5))
"""Of the features of one camera, when they are permuted."""


def weights_of_ipm(source: FeatureShape, cells: Cells, scene: Scene) -> Tensor:
    """Compute IPM's weights exactly, from features that are 1 at one position each."""
    count = source.cameras * source.tokens
    features = torch.eye(count).reshape(1, count, source.cameras, source.height, source.width).transpose(1, 2)
    bev = IPM(replace(source, channels=count), cells.grid)(features, scene.cameras)
    return bev[0].flatten(1).mT[cells.queries].reshape(len(cells), source.cameras, source.height, source.width)


def explorer(cameras: int) -> Explorer:
    """Return two scenes of rotated rigs: IPM, in order and permuted, on every other cell; and two heads of noise."""
    lots = torch.Generator().manual_seed(cameras)
    grid, rig = GRIDS[cameras], ring(cameras, SIZE, 2, torch.device("cpu"), reach_m=8.0)
    turned = rig.ego_from_cam.clone()
    turned[1, :, 2, 3] += 0.2
    rigs = [replace(rig, intrinsics=rig.intrinsics[i : i + 1], ego_from_cam=turned[i : i + 1]) for i in range(2)]
    coarse = torch.rand(2 * cameras, 3, 4, 8, generator=lots)
    images = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").unflatten(0, (2, cameras))
    scenes = [
        Scene(f"scene {i}", images[i], rigs[i], torch.rand(2, *grid.shape, generator=lots) > 0.7) for i in range(2)
    ]
    source = FeatureShape(3, SIZE[0] // STRIDE, SIZE[1] // STRIDE, cameras, STRIDE, OFFSET)
    cells = choose_cells(grid, 5 if cameras == 1 else 20)

    def view(weights: Tensor) -> View:
        return View(torch.rand(2, *grid.shape, generator=lots), weights)

    geometric = [weights_of_ipm(source, cells, scene) for scene in scenes]
    permuted = [w.flatten(2)[..., ORDER].reshape(w.shape) for w in geometric]
    noise = [torch.rand(2, len(cells), *geometric[0].shape[1:], generator=lots) for _ in scenes]
    entries = [
        ExplorerEntry(
            "ipm",
            source,
            cells,
            [{"in order": view(w), "permuted": view(p)} for w, p in zip(geometric, permuted, strict=True)],
        ),
        ExplorerEntry("noise", source, cells, [{"in order": view(w)} for w in noise], ("first", "second")),
    ]
    return Explorer(scenes, entries, CLASSES, grid, [f"camera {i}" for i in range(cameras)])


def projected(scene: Scene, x: float, y: float) -> dict[int, tuple[float, float]]:
    """Return the pixel (u, v) of a ground point in every camera that observes it, by matrices alone."""
    found = {}
    for number in range(len(scene.images)):
        intrinsics = scene.cameras.intrinsics[0, number].double().numpy()
        cam_from_ego = np.linalg.inv(scene.cameras.ego_from_cam[0, number].double().numpy())
        u, v, depth = intrinsics @ (cam_from_ego @ [x, y, 0, 1])[:3]
        u, v = u / depth, v / depth
        if depth > 0 and -0.5 <= u < SIZE[1] - 0.5 and -0.5 <= v < SIZE[0] - 0.5:
            found[number] = (u, v)
    return found


def bilinear(scene: Scene, x: float, y: float) -> NDArray[np.float64]:
    """Return each feature's weight (n, h, w) for a cell: tents about the projection, averaged over its cameras."""
    found = projected(scene, x, y)
    height, width = SIZE[0] // STRIDE, SIZE[1] // STRIDE
    given = np.zeros((len(scene.images), height, width))
    for camera, (u, v) in found.items():
        col, row = np.clip((u - OFFSET) / STRIDE, 0, width - 1), np.clip((v - OFFSET) / STRIDE, 0, height - 1)
        across, down = (np.maximum(0, 1 - np.abs(np.arange(n) - at)) for n, at in ((width, col), (height, row)))
        given[camera] = np.outer(down, across) / len(found)
    return given


def centers(cells: Cells) -> list[tuple[float, float]]:
    """Return the ground (x, y) of every chosen cell."""
    grid = cells.grid
    xs = [grid.forward_m[1] - (row + 0.5) * grid.cell_m for row in cells.rows]
    ys = [grid.left_m[1] - (col + 0.5) * grid.cell_m for col in cells.cols]
    return [(x, y) for x in xs for y in ys]


def test_eight_bits_keep_weights_to_half_a_step() -> None:
    weights = torch.rand(6, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    weights *= torch.logspace(-6, 3, 6, dtype=torch.float64)[:, None, None, None]
    weights[2] = 0
    levels, step, total = quantise(weights)
    expected = weights.reshape(6, 30).numpy()
    assert (np.abs(levels * step[:, None].astype(float) - expected) <= step[:, None] * 0.5001).all()
    assert levels.max(axis=1).tolist() == [255, 255, 0, 255, 255, 255]
    np.testing.assert_allclose(total, expected.sum(1), rtol=1e-6)

    content = zlib.decompress(base64.b64decode(pack(weights)))
    np.testing.assert_array_equal(np.frombuffer(content, "<f4", 6), step)
    np.testing.assert_array_equal(np.frombuffer(content, "<f4", 6, 24), total)
    np.testing.assert_array_equal(np.frombuffer(content, "u1", offset=48).reshape(6, 30), levels)


def test_shared_weights_are_stored_once() -> None:
    shown = explorer(1)
    same = shown.entries[0].views[0]["in order"]
    entry = replace(shown.entries[0], views=[{"in order": same, "permuted": same}] * 2)
    data = explorer_data(replace(shown, entries=[entry]))
    assert len(data["weights"]) == 1
    assert len(explorer_data(shown)["weights"]) == 8


@pytest.mark.parametrize("most", [1, 3, 5, 9, 10, 20])
def test_chosen_cells_are_in_equal_steps(most: int) -> None:
    grid = GRIDS[1]
    cells = choose_cells(grid, most)
    for chosen, size in ((cells.rows, 10), (cells.cols, 9)):
        assert 1 <= len(chosen) <= most
        assert len({b - a for a, b in pairwise(chosen)}) <= 1
        step = chosen[1] - chosen[0] if len(chosen) > 1 else size
        assert chosen[0] < step
        assert size - chosen[-1] <= step
    np.testing.assert_allclose(cells.centers, centers(cells))
    assert cells.queries.tolist() == [row * 9 + col for row in cells.rows for col in cells.cols]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: replace(s.scenes[0], images=s.scenes[0].images[..., 1:]), r"\(1, 3, 32, 63\)"),
        (lambda s: replace(s.scenes[0], images=s.scenes[0].images * 255), "divide bytes by 255"),
        (lambda s: replace(s.scenes[0], valid=torch.ones(1, 10, 9)), r"\(2, 10, 9\) and valid \(1, 10, 9\)"),
        (lambda s: View(torch.ones(2, 10, 9), -torch.ones(25, 1, 8, 16)), "finite values"),
        (lambda s: View(torch.ones(2, 10, 9), torch.full((25, 1, 8, 16), torch.nan)), "finite values"),
        (lambda s: View(3 * torch.ones(2, 10, 9), torch.ones(25, 1, 8, 16)), "sigmoid"),
        (lambda s: View(torch.ones(2, 10, 9), torch.ones(25, 8, 16)), r"\(25, 8, 16\)"),
        (lambda s: View(torch.ones(2, 10, 9), torch.ones(0, 1, 8, 16)), r"\(0, 1, 8, 16\)"),
        (lambda s: replace(s.entries[0], heads=("a", "b")), r"\(1, 25, 1, 8, 16\).*\(2, 25, 1, 8, 16\)"),
        (lambda s: replace(s.entries[0], cells=choose_cells(s.grid, 4)), "cells.queries"),
        (lambda s: replace(s.entries[0], views=[s.entries[0].views[0], {}]), "same orders"),
        (lambda s: Cells(s.grid, (0, 10), (0,)), "0..9"),
        (lambda s: Cells(s.grid, (0,), (3, 3)), "ascend"),
        (lambda s: choose_cells(s.grid, 0), "at least 1"),
        (lambda s: replace(s, scenes=[]), "at least one"),
        (lambda s: replace(s, classes=("road",)), r"\(2, 10, 9\).*\(1, 10, 9\)"),
        (lambda s: replace(s, grid=BEVGrid((2.0, 12.0), (-4.0, 5.0), 1.0)), "same ground"),
        (lambda s: replace(s, scenes=s.scenes[:1]), "views of 2 scenes"),
        (lambda s: replace(s, camera_names=("a", "b")), "1 cameras"),
        (
            lambda s: replace(
                s, entries=[replace(s.entries[0], source=replace(s.entries[0].source, stride=8))]
            ),
            "do not cover",
        ),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(make: Callable[[Explorer], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make(explorer(1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Table(("a", "b"), (("1", "2"), ("3",))), "row 1 of a table has 1 entries"),
        (lambda: Chart(Figure(), " "), "alt text"),
        (lambda: Chart(np.zeros((4, 4, 3)), "noise"), r"ndarray of shape \(4, 4, 3\)"),
        (lambda: Section("Empty"), "leave it out"),
        (lambda: Section("", "text"), "lacks a title"),
    ],
)
def test_empty_parts_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


class Outline(HTMLParser):
    """Collect tags of a page, and the text of headings, styles and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside][-1] += data


NASTY = "</script><script>alert('1 & 2')</script>"


def test_texts_are_escaped() -> None:
    shown = replace(explorer(1), classes=(NASTY, "car"), camera_names=(NASTY,))
    chart = Chart(np.zeros((4, 4, 3), np.uint8), f'black" onload="{NASTY}', NASTY)
    claim = Claim(NASTY, NASTY, NASTY, NASTY, NASTY)
    section = Section(NASTY, NASTY, (chart,), Table((NASTY,), ((NASTY,),)), (claim,))
    page = render(Report(NASTY, NASTY, (section,), shown, NASTY, (NASTY,)))
    assert NASTY not in page
    outline = Outline(page)
    assert outline.texts["h1"] == [NASTY]
    data, code = outline.texts["script"]
    assert json.loads(data)["scenes"][0]["cameras"][0]["name"] == NASTY
    assert "alert" not in code
    assert not [tag for tag, attributes in outline.tags if any(key.startswith("on") for key in attributes)]


def test_the_policy_allows_only_this_style_and_script() -> None:
    outline = Outline(render(Report("t", explorer=explorer(1))))
    (policy,) = (a["content"] or "" for tag, a in outline.tags if tag == "meta" and "http-equiv" in a)
    for text, directive in ((outline.texts["style"][0], "style-src"), (outline.texts["script"][1], "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag, attributes in outline.tags:
        assert "style" not in attributes, tag  # the policy forbids them
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (tag, attributes)


def test_missing_parts_are_left_out_in_order() -> None:
    outline = Outline(render(Report("t")))
    assert "h2" not in outline.texts
    assert "script" not in outline.texts
    claim = Claim("A1", "c", "m", "0.5 (0.4 to 0.6)", "holds")
    sections = [Section("Learning curves", "a"), Section("Claims", claims=[claim]), Section("Examples", "b")]
    outline = Outline(render(Report("t", sections=sections, explorer=explorer(1))))
    assert outline.texts["h2"] == ["Learning curves", "Claims", "Examples", "Explorer"]
    assert "0.5 (0.4 to 0.6)" in outline.texts["td"]


def figure_of(points: int) -> Figure:
    figure = Figure((3, 2))
    x = np.random.default_rng(0).random((2, points))
    figure.subplots().plot(*x, "o")
    return figure


def test_a_figure_is_embedded_in_the_smaller_format() -> None:
    for points, kind in ((3, "image/svg+xml"), (4000, "image/png")):
        pages = [render(Report("t", sections=[Section("s", charts=[Chart(figure_of(points), "dots")])])) for _ in "12"]
        assert pages[0] == pages[1]
        (image,) = (attributes for tag, attributes in Outline(pages[0]).tags if tag == "img")
        assert (image["src"] or "").startswith(f"data:{kind};base64,")
        assert (image["width"], image["height"], image["alt"]) == ("288", "192", "dots")


def test_an_image_is_embedded_in_the_smaller_format() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert image_uri(noise).startswith("data:image/jpeg;")
    assert image_uri(np.zeros_like(noise)).startswith("data:image/png;")


def test_columns_of_figures_are_right_aligned() -> None:
    table = Table(("name", "score", "change", "none"), (("1a", "0.5", "−0.1", ""), ("b", "", "+2 %", "")))
    assert table.numeric == (False, True, True, False)


def test_a_page_over_eight_megabytes_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    shown = explorer(1)
    cells = choose_cells(shown.grid, 20)
    noise = torch.rand(600, len(cells), 1, 8, 16)
    view = View(torch.zeros(2, 10, 9), noise)
    names = tuple(str(i) for i in range(600))
    entry = ExplorerEntry("noise", shown.entries[0].source, cells, [{"in order": view}] * 2, names)
    path = tmp_path / "page.html"
    write(Report("small"), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"MB, more than 8\.0 MB \(weights .*fewer scenes, reshapers, heads"):
        write(Report("large", explorer=replace(shown, entries=[entry])), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine to open the page with")
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


class Explored:
    """Hold an open page and its content."""

    def __init__(self, page: Page, shown: Explorer) -> None:
        self.page = page
        self.shown = shown
        self.cells = shown.entries[0].cells
        page.wait_for("document.getElementById('shown').textContent")
        page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        self.scroll_to("explorer")

    def scroll_to(self, part: str) -> None:
        self.page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
        self.settle()

    @property
    def words(self) -> str:
        return self.page.evaluate("document.getElementById('shown').textContent").replace("\xa0", " ")

    def settle(self) -> None:
        """Wait until the page is drawn; unpacked weights are drawn at once."""
        self.page.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(done), 20))")

    def box(self, selector: str, number: int = 0) -> dict[str, float]:
        """Return the position of an element in the window."""
        return self.page.evaluate(f"document.querySelectorAll('{selector}')[{number}].getBoundingClientRect().toJSON()")

    def point_at_ground(self, x: float, y: float, act: str = "mouse") -> None:
        box, grid = self.box("#map .ground"), self.shown.grid
        across = (grid.left_m[1] - y) / (grid.left_m[1] - grid.left_m[0])
        down = (grid.forward_m[1] - x) / (grid.forward_m[1] - grid.forward_m[0])
        getattr(self.page, act)(box["left"] + across * box["width"], box["top"] + down * box["height"])
        self.settle()

    def point_at_pixel(self, camera: int, u: float, v: float, act: str = "mouse") -> None:
        box = self.box("#images img", camera)
        x = box["left"] + (u + 0.5) / SIZE[1] * box["width"]
        getattr(self.page, act)(x, box["top"] + (v + 0.5) / SIZE[0] * box["height"])
        self.settle()

    def choose(self, name: str, number: int) -> None:
        self.page.evaluate(
            f"((list) => {{ list.value = {number}; list.dispatchEvent(new Event('change')) "
            f"}})(document.getElementById('{name}'))"
        )
        self.settle()

    def heat(self, where: str) -> NDArray[np.float64]:
        """Return heat maps (panels, height, width) in 0..1, by their opacity; NaN where none is shown."""
        # of a copy: reading the page's own canvases would cause a warning of Chromium
        covers = self.page.evaluate(
            f"""[...document.querySelectorAll('{where} canvas.heat')].map((canvas) => {{
              const off = new OffscreenCanvas(canvas.width, canvas.height);
              const copy = off.getContext("2d", {{ willReadFrequently: true }});
              copy.drawImage(canvas, 0, 0);
              const {{ data }} = copy.getImageData(0, 0, canvas.width, canvas.height);
              return [canvas.hidden, canvas.height, canvas.width, [...data].filter((_, i) => i % 4 === 3)];
            }})"""
        )
        return np.stack([np.full((h, w), np.nan) if off else np.reshape(a, (h, w)) for off, h, w, a in covers])

    def heat_over_images(self) -> NDArray[np.float64]:
        return (self.heat("#images") / 235) ** 2

    def heat_over_map(self) -> NDArray[np.float64]:
        return (self.heat("#map")[0] / 235) ** 2

    def crosses(self, where: str) -> list[tuple[int, float, float]]:
        """Return panel and middle of every visible cross, in the window."""
        found = self.page.evaluate(
            f"[...document.querySelectorAll('{where} i.cross')].map((c, i) => [i, c.hidden, "
            "c.getBoundingClientRect().toJSON()])"
        )
        return [(i, b["left"] + b["width"] / 2, b["top"] + b["height"] / 2) for i, hidden, b in found if not hidden]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Explorer]]:
    """Return a page of one camera and one of six."""
    made = {}
    for cameras in (1, 6):
        path, shown = tmp_path_factory.mktemp("pages") / "page.html", explorer(cameras)
        chart = Section(
            "Learning curves",
            charts=[Chart(figure_of(3), "dots")],
            table=Table(tuple("abcdefgh"), (("1234 567",) * 8,)),
        )
        claim = Claim("A7", "A claim of some length, " * 4, "what was measured", "0.5 (0.4 to 0.6)", "holds only there")
        write(Report("A page", "A text.", [Section("Claims", claims=[claim]), chart], shown), path)
        made[cameras] = path, shown
    return made


@pytest.fixture
def explored(browser: Browser, pages: dict[int, tuple[Path, Explorer]]) -> Iterator[Callable[[int], Explored]]:
    """Open the page of so many cameras; at the end, check that there were no warnings and no requests."""
    opened = []

    def open_page(cameras: int) -> Explored:
        path, shown = pages[cameras]
        opened.append((path, browser.open(path)))
        return Explored(opened[-1][1], shown)

    yield open_page
    for path, page in opened:
        for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            assert page.events(kind) == []
        asked = {event["request"]["url"] for event in page.events("Network.requestWillBeSent")}
        assert path.as_uri() in asked
        assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}


@pytest.mark.parametrize("cameras", [1, 6])
def test_pointing_at_a_cell_shows_the_features_where_it_projects_to(
    explored: Callable[[int], Explored], cameras: int
) -> None:
    page = explored(cameras)
    scene, before, seen = page.shown.scenes[0], None, 0
    for x, y in centers(page.cells)[:: 2 if cameras == 1 else 13]:
        page.point_at_ground(x, y)
        heat, pixels, given = page.heat_over_images(), projected(scene, x, y), bilinear(scene, x, y)
        assert page.words.startswith(f"Cell {abs(x):.1f} m {'ahead' if x > 0 else 'behind'}, {abs(y):.1f} m")
        assert np.isnan(page.heat_over_map()).all()
        np.testing.assert_allclose(heat, given / max(given.max(), 1e-9), atol=0.02)
        assert len(page.crosses("#images")) == len(pixels)
        if not pixels:
            assert "No camera sees this cell" in page.words
            assert (heat == 0).all()
            continue
        assert before is None or (heat != before).any()
        before, seen = heat, seen + 1

        # on the screen: where the largest square and the cross lie over the image
        camera, row, col = np.unravel_index(heat.argmax(), heat.shape)
        squares, image = page.box("#images canvas.heat", int(camera)), page.box("#images img", int(camera))
        u = (squares["left"] + (col + 0.5) / heat.shape[2] * squares["width"] - image["left"]) / image["width"]
        v = (squares["top"] + (row + 0.5) / heat.shape[1] * squares["height"] - image["top"]) / image["height"]
        at = np.array([u * SIZE[1] - 0.5, v * SIZE[0] - 0.5])
        assert np.abs(at - pixels[int(camera)]).max() <= 0.52 * STRIDE
        for number, left, top in page.crosses("#images"):
            image = page.box("#images img", number)
            assert (left - image["left"]) / image["width"] * SIZE[1] - 0.5 == pytest.approx(pixels[number][0], abs=0.1)
            assert (top - image["top"]) / image["height"] * SIZE[0] - 0.5 == pytest.approx(pixels[number][1], abs=0.1)

        share = float(page.words.split("with ")[1].split(" %")[0])
        assert share == pytest.approx(100 * given.max() / given.sum(), abs=0.6)
        distance = float(page.words.split("Apart: ")[1].split(" features")[0])
        assert distance == pytest.approx(np.hypot(*(at - pixels[int(camera)])) / STRIDE, abs=0.08)
    assert seen > 5


@pytest.mark.parametrize("cameras", [1, 6])
def test_pointing_at_a_pixel_shows_the_cells_that_it_feeds(explored: Callable[[int], Explored], cameras: int) -> None:
    page = explored(cameras)
    scene, cells = page.shown.scenes[0], page.cells
    given = np.stack([bilinear(scene, x, y) for x, y in centers(cells)])  # q n h w
    lit = 0
    for camera, row, col in [(cameras - 1, 5, 6), (0, 4, 9), (0, 7, 2), (0, 0, 3)]:
        u, v = STRIDE * col + OFFSET, STRIDE * row + OFFSET
        page.point_at_pixel(camera, u + 0.4 * STRIDE, v - 0.4 * STRIDE)
        taken = given[:, camera, row, col].reshape(len(cells.rows), len(cells.cols))
        heat = page.heat_over_map()
        assert heat.shape == cells.grid.shape
        np.testing.assert_allclose(heat[np.ix_(cells.rows, cells.cols)], taken / max(taken.max(), 1e-9), atol=0.02)
        assert np.isnan(page.heat_over_images()).all()
        assert page.words.startswith(f"Feature on pixel ({u:.0f}, {v:.0f}) of camera {camera}")

        # the ray of the pixel meets the ground
        pose = scene.cameras.ego_from_cam[0, camera].double().numpy()
        ray = pose[:3, :3] @ np.linalg.inv(scene.cameras.intrinsics[0, camera].double().numpy()) @ [u, v, 1]
        x, y, _ = pose[:3, 3] - ray * pose[2, 3] / ray[2]
        (near, far), (right, left) = page.shown.grid.forward_m, page.shown.grid.left_m
        if ray[2] >= 0 or not (near <= x <= far and right <= y <= left):
            assert page.crosses("#map") == []
            assert "shows no ground on this map" in page.words
            continue
        lit += 1
        ((_, across, down),) = page.crosses("#map")
        ground = page.box("#map .ground")
        assert left - (across - ground["left"]) / ground["width"] * (left - right) == pytest.approx(y, abs=0.05)
        assert far - (down - ground["top"]) / ground["height"] * (far - near) == pytest.approx(x, abs=0.05)
    assert lit >= 2


def test_arrow_keys_alone_reach_and_move_cell_and_feature(explored: Callable[[int], Explored]) -> None:
    page = explored(1)
    reached = []
    for _ in range(30):
        page.page.press("Tab")
        reached.append(page.page.evaluate("document.activeElement.id || document.activeElement.classList[0]"))
        if reached[-1] == "panel":
            page.page.press("ArrowDown")
            page.settle()
            # from the feature nearest to the image's middle, row 4 of 8, one down
            assert page.words.startswith(f"Feature on pixel ({OFFSET + 8 * STRIDE:.0f}, {OFFSET + 5 * STRIDE:.0f})")
        if reached[-1] == "map":
            break
    assert [name for name in reached if name in ("entry", "scene", "order", "panel", "map")] == [
        "entry",
        "scene",
        "order",
        "panel",
        "map",
    ]
    page.point_at_ground(6.5, 0.5)
    for key, x, y in (
        ("ArrowUp", 8.5, 0.5),
        ("ArrowLeft", 8.5, 2.5),
        ("ArrowDown", 6.5, 2.5),
        ("ArrowRight", 6.5, 0.5),
    ):
        page.page.press(key)
        page.settle()
        assert page.words.startswith(f"Cell {x} m ahead, {y} m to the left")
        given = bilinear(page.shown.scenes[0], x, y)
        np.testing.assert_allclose(page.heat_over_images(), given / given.max(), atol=0.02)
    for _ in range(9):
        page.page.press("ArrowUp")
    page.settle()
    assert page.words.startswith("Cell 10.5 m ahead, 0.5 m to the left")  # at the edge


def test_switches_keep_the_selected_position(explored: Callable[[int], Explored]) -> None:
    page = explored(1)
    page.point_at_ground(6.5, 0.5)
    cell = centers(page.cells).index((6.5, 0.5))
    place = page.words.split(".")[1]

    def expect(entry: int, scene: int, order: str, head: int) -> None:
        w = page.shown.entries[entry].views[scene][order].heads[head, cell].numpy()
        np.testing.assert_allclose(page.heat_over_images(), w / w.max(), atol=0.02)
        assert page.words.split(".")[1] == place

    hidden = "['entry', 'scene', 'head', 'order'].filter((id) => document.getElementById(id).parentElement.hidden)"
    assert page.page.evaluate(hidden) == ["head"]
    expect(0, 0, "in order", 0)
    page.choose("order", 1)
    expect(0, 0, "permuted", 0)
    page.choose("scene", 1)
    expect(0, 1, "permuted", 0)
    page.choose("entry", 1)
    assert page.page.evaluate(hidden) == ["order"]
    expect(1, 1, "in order", 0)
    page.choose("head", 1)
    expect(1, 1, "in order", 1)

    data = explorer_data(page.shown)
    behind = "(() => { const p = document.querySelector('#map img'); return p.hidden ? null : p.src })()"
    assert page.page.evaluate(behind) == data["scenes"][1]["target"]
    for choice, address in (("prediction", data["entries"][1]["views"][1][0]["prediction"]), ("nothing", None)):
        page.page.evaluate(f"document.querySelector('input[value={choice}]').click()")
        assert page.page.evaluate(behind) == address


def test_a_click_holds_the_selection(explored: Callable[[int], Explored]) -> None:
    page = explored(1)
    page.point_at_ground(6.5, 0.5, "click")
    assert page.words.endswith("Held: click to let go.")
    held = page.words
    page.point_at_ground(8.5, 2.5)
    page.point_at_pixel(0, 20, 20)
    assert page.words == held
    page.point_at_pixel(0, 20, 20, "click")
    assert page.words.startswith("Feature on pixel (22, 22)")
    page.point_at_ground(8.5, 2.5)
    assert page.words.startswith("Cell 8.5 m ahead, 2.5 m to the left")


@pytest.mark.parametrize("cameras", [1, 6])
def test_touch_and_layout_on_a_phone(explored: Callable[[int], Explored], cameras: int) -> None:
    page = explored(cameras)
    page.page.resize(360, 740)
    page.scroll_to("map")
    assert page.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    page.point_at_ground(4.5, -1.5, "tap")
    assert page.words.startswith("Cell 4.5 m ahead, 1.5 m to the right")
    assert "Held" not in page.words


def test_the_policy_stops_requests(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(Report("t"), path)
    page = browser.open(path)
    assert page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')") == "refused"
    assert "Content Security Policy" in str(page.events("Log.entryAdded"))
