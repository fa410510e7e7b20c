"""Hooks of mkdocs: pages that are made for the site only, and links that lead out of docs/.

The site has more pages than docs/: README.md of the repository, and the references of HTTP and Python names. A link
from a page to another file of the repository, which the site does not have, becomes that file's name. `make site` is
strict: a link that leads nowhere fails it. Here a file that does not exist raises.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
MERMAID = ROOT / ".venv-site" / "mermaid.min.js"
"""Draws diagrams; `make site` fetches it. Without it the theme would load it from another server."""
STYLE = """.md-grid { max-width: 76rem; }
.md-typeset pre > code { white-space: pre-wrap; }
"""
"""Room for tables and diagrams; long commands are wrapped."""
WARM = """# Python: foreseen.warm

The library behind `foreseen warm`: [batch runs](batch.md#as-a-python-library).

::: foreseen.warm.Warmer

::: foreseen.warm.plan_for

::: foreseen.warm.Plan
"""
AIRFLOW = """# Python: foreseen.airflow

For Airflow 3: [batch runs by schedule](batch.md#by-schedule-airflow).

::: foreseen.airflow.operators.WarmOperator

::: foreseen.airflow.operators.cache_warm
"""
HTTP = """# HTTP API

Every route with its requests and answers, from [openapi.json](openapi.json). A table of them: [routes](http.md).

<swagger-ui src="openapi.json" supportedSubmitMethods="[]"/>
"""
MARK = re.compile(r"(?m)^( *```[\w-]+) .*$")
"""How a block is tested (tests/fences.py), which is for tests alone."""
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """README.md as about.md, and the pages that only the site has."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    readme = re.sub(r"\]\((?!https?:|#)((?!README\.md|[\w-]+\.md|pictures/)[^)]+)\)", r"](../\1)", readme)
    made = {"about.md": readme, "api-warm.md": WARM, "api-airflow.md": AIRFLOW, "api-http.md": HTTP}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "assets/mermaid.min.js", abs_src_path=str(MERMAID)))
    files.append(File.generated(config, "assets/site.css", content=STYLE))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files that the site does not have, and the marks of blocks."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {link[2]}")
        if target == ROOT / "README.md":
            return f"[{link[1]}](about.md{link[3] or ''})"
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        return f"{link[1]} (`{target.relative_to(ROOT)}`)"

    return MARK.sub(r"\1", LINK.sub(replaced, markdown))
