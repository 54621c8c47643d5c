"""The page: every experiment with its question, finding, tables and machine, in one file that fetches nothing."""

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from pqkv.errors import RecordError
from pqkv.record import Metric, RecordStore
from pqkv.report import find_experiments, write_page
from pqkv.report.grid import grid_of_rows
from pqkv.report.page import page
from pqkv.report.plots import PLOT_NAMES, plots_of
from pqkv.report.readme import section, to_html

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
README = f"""# Faults

## Question

Which **measure** sees it? [paper](https://example.org/paper) [log](../LOG.md) [bad](javascript:alert(3))

## Method

Not shown.

## Finding

`kld_mean` does. ![a picture](https://example.org/x.png) {HOSTILE}

| fault | measure |
|---|---|
| none | 0.1 |
"""


class Page(HTMLParser):
    """Elements as (tag, attributes, path of open ids), and the text below each id; unbalanced tags fail."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def shown(text):
    """The text of a page, blanks as one."""
    return " ".join(" ".join(Page(text).text).split())


@pytest.fixture(scope="module")
def results(make, tmp_path_factory):
    """Two experiments: one with a README, own tables and pictures, a failed cell; and one that is only records."""
    tmp_path = tmp_path_factory.mktemp("page")
    grid = [make(bits, mode, context) for bits in (4, 2) for mode in ("chunk", "token") for context in (512, 2048)]
    for record in [*grid, make(1, error="no room <b>here</b>"), make(8, notes=["reference was used"])]:
        RecordStore(tmp_path / "results" / "faults").write(record)
    RecordStore(tmp_path / "results" / "plain").write(make(git={"commit": "0123456789ab", "dirty": True}))
    folder = tmp_path / "results" / "faults"
    rows = [f"none,{n},{n / 7},{n / 8},{n / 6}" for n in range(40)]
    (folder / "fingerprint.csv").write_text("\n".join(["fault,context,kld,kld_low,kld_high", *rows]))
    (folder / "claims.csv").write_text("claim,holds\n<i>yes</i>,true\n")
    image = Image.new("RGB", (600, 300), "white")
    ImageDraw.Draw(image).line((0, 0, 600, 300), fill="black")
    image.save(folder / "fingerprint.png", dpi=(144, 144))
    (folder / "map.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt"></svg>')
    (folder / "map.png").write_bytes((folder / "fingerprint.png").read_bytes())
    (folder / "summary.csv").write_text("derived\n")
    (folder / f"{PLOT_NAMES[0]}.png").write_bytes(b"derived")
    (tmp_path / "results" / "empty").mkdir()
    readme = tmp_path / "experiments" / "faults" / "README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text(README)
    return tmp_path / "results"


@pytest.fixture(scope="module")
def text(results):
    """Their page: drawing its panels takes seconds, so they are drawn once."""
    return page(find_experiments([results], results.parent / "experiments"))


def test_every_experiment_has_question_finding_tables_and_machine(text):
    ids = Page(text).ids()
    assert len(ids) == len(set(ids))
    for name in ("faults", "plain"):
        for part in ("", "-question", "-finding", "-figures", "-tables", "-machine"):
            assert f"x-{name}{part}" in ids
    assert "x-empty" not in ids
    words = shown(text)
    for expected in (
        "Which measure sees it?", "kld_mean does.", "No README states this experiment's question.", "AMD EPYC",
        "Python 3.11.7", "torch 2.13.0", "01234567 with local changes", "no room <b>here</b>", "reference was used",
        "9 cells ran, 1 failed", "[1.0042, 1.0063]", "Configured alike in all cells",
    ):  # fmt: skip
        assert expected in words, expected
    assert "Not shown." not in words
    assert "summary.csv" not in words


def test_links_within_the_page_lead_somewhere_and_headings_skip_no_level(text):
    parsed = Page(text)
    ids = set(parsed.ids())
    inner = [link["href"][1:] for link in parsed.all("a") if link["href"].startswith("#")]
    assert len(inner) > 12
    assert set(inner) <= ids
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert parsed.all("html") == [{"lang": "en"}]
    assert parsed.all("main")
    assert parsed.all("nav")


def test_nothing_is_fetched_and_every_picture_has_words(text):
    parsed = Page(text)
    assert not [tag for tag, _ in parsed.elements if tag in ("script", "link", "iframe", "object", "embed", "base")]
    for _, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset", "poster", "data", "action", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    outward = {link["href"] for link in parsed.all("a") if not link["href"].startswith("#")}
    assert outward == {"https://example.org/paper"}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    images = parsed.all("img")
    assert len(images) > 10
    assert all(len(image["alt"]) > 15 for image in images)


def test_what_records_and_readmes_hold_is_text(make, tmp_path):
    folder = tmp_path / "results" / "x<script>"
    store = RecordStore(folder)
    store.write(
        make(model=HOSTILE, data=HOSTILE, mode=HOSTILE, scope=HOSTILE, notes=[HOSTILE], git={"commit": HOSTILE})
    )
    store.write(
        make(
            2,
            scope="head",
            model=HOSTILE,
            data=HOSTILE,
            error=HOSTILE,
            env={"python": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        )
    )
    store.write(make(3, tables={HOSTILE: [{HOSTILE: HOSTILE}]}, note=HOSTILE))
    (folder / "t.csv").write_text(f'"{HOSTILE}",b\n"{HOSTILE}",1\n')
    described = tmp_path / "experiments" / "x<script>"
    described.mkdir(parents=True)
    (described / "README.md").write_text(README)
    text = page(find_experiments([tmp_path / "results"], tmp_path / "experiments"))
    parsed = Page(text)
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert not [image for image in parsed.all("img") if not image["src"].startswith("data:")]
    assert shown(text).count("<script>alert(1)</script>") > 8
    assert "javascript:" not in " ".join(str(attributes) for _, attributes in parsed.elements)


def test_the_same_records_give_the_same_bytes_in_any_order(results, text, tmp_path):
    found = find_experiments([results], results.parent / "experiments")
    turned = [replace(one, records=one.records[::-1]) for one in found]
    path = write_page(turned, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8") == text


def test_own_tables_and_pictures_are_shown_and_derived_ones_are_not(text):
    parsed = Page(text)
    own = [image for image in parsed.all("img") if image["alt"].startswith("Figure ")]
    assert [image["alt"] for image in own] == [
        "Figure fingerprint.png as the experiment faults drew it. Its figures are in the table fingerprint.csv.",
        "Figure map.svg as the experiment faults drew it.",  # and not map.png, the same picture
    ]
    assert [(image["width"], image["height"]) for image in own] == [("400", "200"), ("96", "48")]  # 144 dpi; points
    words = shown(text)
    assert "<i>yes</i>" in words
    assert "5.571 [4.875, 6.5]" in words
    assert re.search(r"Fingerprint \(fingerprint.csv\) 40 rows", words)
    assert text.count("<details>") > 3


def test_a_folder_of_records_and_single_files_are_experiments_too(results):
    assert [one.name for one in find_experiments([results])] == ["faults", "plain"]
    assert [one.name for one in find_experiments([results / "plain"])] == ["plain"]
    file = next((results / "plain").glob("*.json"))
    assert [(one.name, len(one.records)) for one in find_experiments([file])] == [("plain", 1)]
    assert [one.name for one in find_experiments([results, results / "faults", file])] == ["faults", "plain"]


def test_experiments_of_one_name_keep_anchors_of_their_own(make, tmp_path):
    for place in ("a", "b"):
        RecordStore(tmp_path / place / "same").write(make())
    ids = Page(page(find_experiments([tmp_path / "a", tmp_path / "b"]))).ids()
    assert {"x-same", "x-same-2"} <= set(ids)
    assert len(ids) == len(set(ids))


def test_failures_alone_make_a_page(make, tmp_path):
    RecordStore(tmp_path / "broken").write(make(error="out of pages"))
    assert "out of pages" in shown(page(find_experiments([tmp_path])))


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [("a.png", b"not a picture", "is not a PNG"), ("a.svg", b"words", "is not an SVG"), ("a.csv", None, "cannot read")],
)
def test_a_file_that_cannot_be_shown_is_one_line(make, tmp_path, monkeypatch, name, content, cause):
    RecordStore(tmp_path / "x").write(make())
    (tmp_path / "x" / name).write_bytes(content or b"")
    if content is None:
        monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(RecordError, match=cause) as caught:
        page(find_experiments([tmp_path]) if content else _with_table(make, tmp_path / "x" / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def _with_table(make, path):
    from pqkv.report import Experiment

    return [Experiment("x", (make(),), tables=(path,))]


def test_no_records_and_no_experiments_folder_are_one_line(tmp_path):
    with pytest.raises(RecordError, match="no records"):
        page(find_experiments([tmp_path]))
    with pytest.raises(RecordError, match="no folder of experiments"):
        find_experiments([tmp_path], tmp_path / "nowhere")


def test_sections_of_a_readme():
    readme = "# T\n\n## Question\n\nq\n\n### more\n\n```\n## Finding\n```\n\n## Result\nr\n"
    assert section(readme, "Question").startswith("q")
    assert "## Finding" in section(readme, "Question")  # in a code block it is no heading
    assert section(readme, "Finding", "Result") == "r"
    assert section(readme, "Method") == ""
    assert to_html("### more") == "<h4>more</h4>"
    assert "<table>" in to_html("| a |\n|---|\n| 1 |")
    assert "<b>" not in to_html("<b>x</b>")


def test_rows_become_figures_with_intervals_and_words():
    rows = [{"x": "0.123456", "x_low": "0.1", "x_high": "0.2", "y_low": "1", "w": "off by 1"}, {"x": "", "w": "-"}]
    made = grid_of_rows("t", rows)
    assert [heading.name for heading in made.headings] == ["x", "y_low", "w"]
    assert [heading.is_number for heading in made.headings] == [True, True, False]
    assert [str(entry) for entry in made.rows[0]] == ["0.1235 [0.1, 0.2]", "1", "off by 1"]
    assert [str(entry) for entry in made.rows[1]] == ["-", "-", "-"]


def test_panels_know_both_colour_schemes_and_letters_stay_readable(grid, make):
    from pqkv.report.panels import WIDTH, panels

    drawn = [
        panel for plot in plots_of([*grid, make(metrics={"speedup": Metric(value=2.0)})]) for panel in panels(plot)
    ]
    assert len(drawn) > 6
    for panel in drawn:
        svg = base64.b64decode(panel.uri.partition(",")[2]).decode()
        body = svg.replace(re.search("<style>.*?</style>", svg, re.DOTALL)[0], "")
        assert "prefers-color-scheme:dark" in svg
        assert not re.findall("(?:fill|stroke): #", body)  # each colour is a variable
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", body)]
        assert sizes
        assert min(sizes) * 320 / WIDTH >= 11  # 320: the narrowest the page shows a panel
        assert "<dc:date>" not in svg


def test_plot_names_are_those_of_the_plots(grid):
    assert tuple(plot.name for plot in plots_of(grid)) == PLOT_NAMES


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
PROBE = (
    "<script>addEventListener('load',()=>{document.querySelectorAll('details').forEach(d=>d.open=true);"
    "document.body.dataset.width=document.documentElement.scrollWidth+' of '+innerWidth})</script></body>"
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is installed")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_browser_shows_it_without_scrolling_sideways(text, tmp_path, width, height):
    path = tmp_path / "page.html"

    # A window of the old headless mode is not narrower than 500: the page goes into a frame as wide as asked for.
    policy = re.search('<meta http-equiv="Content-Security-Policy"[^>]*>', text)[0]  # it would stop the probe
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace(policy, "").replace("</body>", PROBE))
    path.write_text(
        f'<body style="margin:0"><iframe style="border:0" width="{width}" height="{height}" src="probed.html"></iframe>'
        "<script>addEventListener('load',()=>{document.body.dataset.found="
        "frames[0].document.body.dataset.width})</script></body>"
    )
    common = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", f"--window-size={width},{height}",
    ]  # fmt: skip
    dumped = subprocess.run(
        [*common, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'data-found="(\d+) of (\d+)"', dumped.stdout)
    assert found, dumped.stdout[-500:]
    assert (int(found[1]), int(found[2])) == (width, width)

    picture = tmp_path / "shot.png"
    plain = tmp_path / "plain.html"
    plain.write_text(text)
    subprocess.run([*common, f"--screenshot={picture}", plain.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as image:
        assert image.size == (width, height)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert len(colours) > 50
        assert max(count for count, _ in colours) < 0.98 * width * height
