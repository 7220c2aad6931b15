"""Opens every built page in headless Chromium: `make docs-check`.

Each page is seen at desktop and phone width, light and dark. A console error, a request that fails
or leaves the site, a link to nothing, a picture that is not there, or a page wider than the screen
fails. The pictures of the pages go to docs/_build/seen.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

SITE = Path(__file__).parent / "_build" / "html"
SEEN = SITE.parent / "seen"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


class Page(HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] or "" for key in ("id", "name") if key in found}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag in ("img", "script", "source") and found.get("src"):
            self.loads.append(found["src"] or "")
        if tag == "img" and found.get("srcset"):
            self.loads += [part.split()[0] for part in (found["srcset"] or "").split(",")]
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"] or "")


def broken(pages: dict[Path, Page]) -> list[str]:
    """The links and loads that lead nowhere, and the loads from elsewhere."""
    wrong = []
    for path, page in pages.items():
        for target in page.links + page.loads:
            parts = urlparse(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    wrong.append(f"{path.relative_to(SITE)}: loads {target}")
                continue
            place, anchor = urldefrag(target)
            file = (path.parent / unquote(urlparse(place).path)).resolve() if place else path
            if not file.is_file():
                wrong.append(f"{path.relative_to(SITE)}: {target} is not there")
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                wrong.append(f"{path.relative_to(SITE)}: {target} has no such place")
    for sheet in SITE.rglob("*.css"):
        wrong += [
            f"{sheet.relative_to(SITE)}: loads {found}"
            for found in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)\)", sheet.read_text())
        ]
    return wrong


PROBE = """<!doctype html><style>body{{margin:0}}</style>
<iframe id=f style="border:0;width:{width}px;height:{height}px" src="{src}"></iframe>
<pre id=out>waiting</pre><script>
f.onload = () => {{ const d = f.contentDocument, e = d.documentElement;
out.textContent = JSON.stringify({{wide: e.scrollWidth - e.clientWidth, missing:
[...d.images].filter(i => i.loading != "lazy" && !i.naturalWidth).map(i => i.src)}}) }}</script>"""


def see(chromium: str, path: Path, width: str, dark: bool) -> list[str]:
    """Open one page in one way; what is wrong with it."""
    name = str(path.relative_to(SITE)).replace("/", "-").removesuffix(".html")
    columns, height = WIDTHS[width]
    wrong = []
    with tempfile.TemporaryDirectory() as profile:
        options = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--log-level=0", "--allow-file-access-from-files"),
            *("--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *("--virtual-time-budget=2000", "--host-resolver-rules=MAP * ~NOTFOUND"),
        ]
        probe = Path(profile) / "probe.html"
        probe.write_text(PROBE.format(width=columns, height=height, src=path.as_uri()))
        shade = "dark" if dark else "light"
        window = f"--window-size={max(columns, 500)},{height}"
        picture = f"--screenshot={SEEN / f'{name}-{width}-{shade}.png'}"
        dumped = subprocess.run(
            [chromium, *options, window, picture, "--dump-dom", probe.as_uri()],
            capture_output=True,
            text=True,
            timeout=90,
        )
    console = [line for line in dumped.stderr.splitlines() if ":CONSOLE" in line]
    wrong += [f"{name} ({width}, {shade}): {line}" for line in console]
    found = re.search(r"<pre id=\"?out\"?>(.*?)</pre>", dumped.stdout)
    if found is None or not found.group(1).startswith("{"):
        return [*wrong, f"{name} ({width}, {shade}): was not opened"]
    said = json.loads(found.group(1))
    wrong += [f"{name} ({width}, {shade}): {image} is not drawn" for image in said["missing"]]
    if said["wide"] > 1:
        wrong.append(f"{name} ({width}, {shade}): {said['wide']} pixels wider than the screen")
    return wrong


def main() -> int:
    pages = {path.resolve(): Page(path) for path in sorted(SITE.rglob("*.html"))}
    wrong = broken(pages)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        print("no Chromium here: set CHROMIUM=/path/to/it; links and loads alone were checked")
    else:
        SEEN.mkdir(exist_ok=True)
        ways = [(p, width, dark) for p in pages for width in WIDTHS for dark in (False, True)]
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(lambda way: see(chromium, *way), ways):
                wrong += found
        print(f"{len(pages)} pages, seen in {len(ways)} ways")
    print("\n".join(wrong) or "nothing is wrong")
    return bool(wrong) or chromium is None


if __name__ == "__main__":
    sys.exit(main())
