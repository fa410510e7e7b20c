"""`make screenshots`: every page of build/site in a real browser (Debian's chromium), as build/screenshots/PAGE.png.

Served by a local HTTP server, as a website is. Ends with status 1 if a page asks for a file that is not there.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SITE, PICTURES = ROOT / "build" / "site", ROOT / "build" / "screenshots"
SIZE = "1280,1500"
MILLISECONDS = 6_000
"""Of virtual time for a page's scripts: diagrams are drawn by one."""
SECONDS = 180


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and notes what it lacks."""

    missing: set[str] = set()  # noqa: RUF012 - of all requests; each request has a handler of its own

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Nothing on stderr."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if str(code) == "404" and self.path != "/favicon.ico":
            self.missing.add(self.path)


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        sys.exit("screenshots: no chromium; install Debian's package chromium")
    return found


def main() -> None:
    """All pages, one after the other."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Handler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in sorted(SITE.rglob("*.html")):
            name = str(page.relative_to(SITE).with_suffix("")).replace("/", "-")
            command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [f"--window-size={SIZE}", f"--virtual-time-budget={MILLISECONDS}"]
            command += [f"--screenshot={PICTURES / name}.png"]
            address = f"http://127.0.0.1:{server.server_port}/{page.relative_to(SITE)}"
            subprocess.run([*command, address], check=True, capture_output=True, timeout=SECONDS)
        server.shutdown()
    print(f"screenshots: {len(list(PICTURES.glob('*.png')))} pages in {PICTURES.relative_to(ROOT)}")
    if Handler.missing:
        sys.exit(f"screenshots: not there: {', '.join(sorted(Handler.missing))}")


if __name__ == "__main__":
    main()
