"""A headless browser, where there is one: Chromium, or what Playwright installed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
_HOW = "pip install playwright, and a browser: apt install chromium, or playwright install chromium"


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """A browser of Playwright's API; the test is skipped where none starts."""
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"no browser to look with: {_HOW}")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    # A preloaded BLAS, of use to MLX, keeps browsers from starting.
    quiet = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    preload = os.environ.pop("LD_PRELOAD", None)
    try:
        with sync_api.sync_playwright() as playwright:
            try:
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], env=quiet)
            except sync_api.Error as error:
                pytest.skip(f"no browser to look with ({str(error).splitlines()[0]}): {_HOW}")
            yield browser
            browser.close()
    finally:
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload


# Every piece of text with its place, size, and contrast to what lies behind it (WCAG 2.2, 1.4.3).
TEXTS = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = color => color.slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement;
    if (!node.data.trim() || ['STYLE', 'TITLE', 'title'].includes(element.tagName)) continue;
    const range = document.createRange(); range.selectNodeContents(node);
    const clip = element.closest('.scroll')?.getBoundingClientRect();
    const rects = [...range.getClientRects()].filter(r => r.width && r.height).map(r => ({
      left: clip ? Math.max(r.left, clip.left) : r.left, right: clip ? Math.min(r.right, clip.right) : r.right,
      top: r.top + scrollY, bottom: r.bottom + scrollY })).filter(r => r.right > r.left);
    if (!rects.length) continue;
    const style = getComputedStyle(element), svg = element.closest('svg');
    const back = behind(svg ? svg.parentElement : element);
    const fore = over(parse(svg ? style.fill : style.color), back);
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    found.push({ text: node.data.trim().slice(0, 60), rects, contrast: (a + .05) / (b + .05),
                 size: parseFloat(style.fontSize) * scale });
  }
  return found;
}"""
