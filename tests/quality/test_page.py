from __future__ import annotations

import itertools
import random
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from browser import TEXTS, started

from mlxport.errors import MlxportError
from mlxport.fit import named_machine
from mlxport.parity.parity_report import LayerError
from mlxport.quality.make_report import make_report
from mlxport.quality.module_errors import ModuleError
from mlxport.quality.page import render
from mlxport.quality.report_files import write_report
from mlxport.quality.samples import Sample
from mlxport.quality.speed import Predicted

HOSTILE = "\"'><script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\">"
WIDTHS, SCHEMES = (400, 1400), ("light", "dark")


@pytest.fixture(scope="session")
def made(sources, outputs):
    """A report of a real conversion."""
    return make_report(
        outputs("tiny-llama", quantize=4), sources("tiny-llama"), tokens=300, machine=named_machine("M2 8GB")
    )


def large(report):
    """The same report as that of a model of 80 blocks with experts, a long name and odd figures."""
    kinds = [
        "self_attn.q_proj",
        "self_attn.kv_a_proj_with_mqa",
        "mlp.switch_mlp.down_proj",
        "mlp.shared_experts.up_proj",
    ]
    draw = random.Random(0)
    modules = [ModuleError("lm_head", "lm_head", None, 10**9, 16, None, "BF16", 16.0, float("inf"))]
    for layer, kind in itertools.product(range(80), kinds):
        bits = draw.choice([2, 3, 4, 6, 8])
        path = f"model.layers.{layer}.{kind}"
        modules.append(ModuleError(path, kind, layer, 10**8, bits, 64, "affine", bits + 0.5, draw.random() / bits))
    return replace(
        report,
        folder="out",
        name="an-organisation/A-Model-With-A-Very-Long-Name-That-Has-To-Break-Somewhere-671B-Instruct-4bit",
        source="/a/path/" + "without-a-place-to-break" * 8,
        parameters=671 * 10**9,
        nbytes=380 * 10**9,
        modules=tuple(modules),
        layers=tuple(LayerError(f"model.layers.{n}", draw.random()) for n in range(80)),
        samples=(Sample("Code", "x" * 200, ("", "y" * 300, ""), ("", "", ""), 0, 3),),
        predicted=Predicted("M3 Ultra 32c/80g 512GB", 163840, 10**12, 5 * 10**11, 0, None),
        notes=("a note " * 60, "z" * 300),
        quality=replace(report.quality, perplexity=1e9, kl_levels=((50.0, 0.0), (100.0, 30.0))),
    )


def hostile(report):
    """The same report, every text of it an attempt to run a script."""
    odd = HOSTILE + "\x00\x1b[31m\u202e\ud800"
    return replace(
        report,
        name=odd,
        folder=odd,
        source=odd,
        modules=tuple(replace(m, path=odd, kind=odd, mode=odd) for m in report.modules),
        layers=tuple(LayerError(odd, layer.relative) for layer in report.layers),
        samples=(Sample(odd, odd, (odd, odd, odd), (odd, odd, odd), 1, 2),),
        predicted=replace(report.predicted, machine=odd),
        speed=replace(report.speed, device=odd),
        text={"name": odd, "bytes": 1, "sha256": odd},
        quantization=((odd, 1),),
        notes=(odd,),
        provenance={
            "versions": {"mlxport": odd, odd: odd}, "revision": odd, "verified": False,
            "source_files": {odd: {"sha256": odd}, "odd": odd}, "output_files": {odd: {"sha256": odd}},
            "options": {odd: odd},
        },
        created=odd,
    )  # fmt: skip


VARIANTS = {"plain": lambda report: report, "large": large, "hostile": hostile}


class Tags(HTMLParser):
    """Names and attributes of the elements of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_page_holds_no_script_and_fetches_nothing(made, variant):
    page = render(VARIANTS[variant](made))
    tags = Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.found}
    assert not names & {"script", "img", "iframe", "object", "embed", "form", "base", "audio", "video", "use", "image"}
    plain = Tags()
    plain.feed(render(made))
    assert names <= {tag for tag, _ in plain.found} | {"li", "ul"}
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert tag != "link" or attributes == {"rel": "icon", "href": "data:,"}
        assert tag != "a" and "url(" not in str(attributes.get("style"))
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page
    page.encode("utf-8")  # no halves of characters
    assert not any(sign in page for sign in ("\x00", "\x1b", "\u202e"))


def test_the_same_figures_make_the_same_page(made):
    assert render(made) == render(made)


def test_a_page_is_written_whole_or_not_at_all(made, tmp_path, monkeypatch):
    import mlxport.quality.page as page

    (tmp_path / "report.html").write_text("before")
    monkeypatch.setattr(page, "_percent", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(made, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "before"}
    monkeypatch.undo()
    blocked = tmp_path / "report.html" / "below"
    with pytest.raises(MlxportError, match="cannot write the report"):
        write_report(made, blocked)


@pytest.fixture(scope="module")
def browser():
    with started() as found:
        yield found


def looked_at(browser, path, width, scheme):
    """The page, opened, with everything that it asked for and complained of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: said.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    return page, [line for line in said if line != f"request: {path.as_uri()}"]


def overlapping(texts):
    """Pairs of different texts that cover each other."""
    pairs = []
    placed = sorted(((rect, text["text"], number) for number, text in enumerate(texts) for rect in text["rects"]),
                    key=lambda item: item[0]["top"])  # fmt: skip
    for place, (one, first, number) in enumerate(placed):
        for two, second, other in placed[place + 1 :]:
            if two["top"] > one["bottom"]:
                break
            wide = min(one["right"], two["right"]) - max(one["left"], two["left"])
            high = min(one["bottom"], two["bottom"]) - two["top"]
            if number != other and wide > 2 and high > 4:
                pairs.append((first, second, wide, high))
    return pairs


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_page_can_be_read(browser, made, tmp_path, variant, width, scheme):
    path, _ = write_report(VARIANTS[variant](made), tmp_path)
    page, said = looked_at(browser, path, width, scheme)
    assert said == []
    assert page.evaluate("document.scripts.length + document.images.length") == 0
    assert page.title() != "owned" and "quality report" in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        "() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
        "(e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1))"
        ".map(e => e.outerHTML)"
    )
    assert beyond == []
    texts = page.evaluate(TEXTS)
    assert len(texts) > 150
    assert [text for text in texts if text["contrast"] < 4.5] == []
    assert [text for text in texts if text["size"] < 11] == []
    assert overlapping(texts) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 18, 22)"
    assert dark == (scheme == "dark")
    page.context.close()


def test_what_does_not_fit_is_reached_by_the_keyboard(browser, made, tmp_path):
    path, _ = write_report(large(made), tmp_path)
    page, _ = looked_at(browser, path, 400, "light")
    scrolled = page.evaluate(
        "() => [...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1 && "
        "['auto', 'scroll'].includes(getComputedStyle(e).overflowX))"
        ".map(e => [e.tabIndex, e.getAttribute('aria-label')])"
    )
    assert len(scrolled) >= 2 and all(index == 0 and label for index, label in scrolled)
    headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert headings[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(headings))
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))")
    page.context.close()


def test_the_columns_of_bits_are_seen_on_a_phone(browser, made, tmp_path):
    """Error, setting and bits per weight of every module, without scrolling sideways."""
    path, _ = write_report(large(made), tmp_path)
    page, _ = looked_at(browser, path, 400, "light")
    heads = page.evaluate(
        "() => [...document.querySelectorAll('section table')].map(t => [...t.querySelectorAll('th')].filter(h => "
        "h.getBoundingClientRect().width && h.getBoundingClientRect().right <= innerWidth).map(h => h.textContent))"
    )
    assert heads and all(names == ["Module", "Error", "Stored as", "Bits per weight"] for names in heads), heads
    page.context.close()


def test_one_colour_has_one_meaning_and_no_module_is_left_out_of_the_maps(browser, made, tmp_path):
    """Errors have one colour and bits another, in lines, bars and maps; embeddings and heads are in the maps, too."""
    report = large(made)
    path, _ = write_report(replace(report, modules=(*made.modules, *report.modules)), tmp_path)
    page, _ = looked_at(browser, path, 1400, "light")
    fills = page.evaluate(
        "() => Object.fromEntries(['error', 'bits'].map(kind => [kind, [...new Set([...document.querySelectorAll("
        "`svg.${kind} .dot, svg.${kind} .bar, svg.${kind} .cell`)].map(e => getComputedStyle(e).fill))]]))"
    )
    assert len(fills["error"]) == len(fills["bits"]) == 1 and fills["error"] != fills["bits"]
    assert page.evaluate("document.querySelectorAll('svg:not(.error):not(.bits)').length") == 0
    for kind in ("error", "bits"):
        cells = page.evaluate(f"[...document.querySelectorAll('svg.{kind} .cell title')].map(t => t.textContent)")
        assert {text.split(":")[0] for text in cells} >= {"lm_head", "model.embed_tokens"}
    page.context.close()


def test_marks_of_the_plots_say_their_figures(browser, made, tmp_path):
    path, _ = write_report(made, tmp_path)
    page, _ = looked_at(browser, path, 1400, "light")
    titles = page.evaluate("[...document.querySelectorAll('svg .dot title, svg .cell title')].map(t => t.textContent)")
    assert f"block 5 (model.layers.5): {100 * made.layers[5].relative:.1f}%" in titles
    one = next(module for module in made.modules if module.path == "model.layers.3.self_attn.v_proj")
    assert one.output_error is not None and one.output_error != one.error
    figures = f"error of its outputs {100 * one.output_error:.1f}%, of its weights {100 * one.error:.1f}%"
    assert f"{one.path}: {figures}, 4.50 bits per weight" in titles
    page.context.close()
