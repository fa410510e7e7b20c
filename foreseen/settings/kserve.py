"""KServe's flags of a transformer → the proxy's: KServe appends them to the command of a transformer's container.

--model_name NAME        --model=NAME
--predictor_host HOST    --upstream=http://HOST
--http_port PORT         --port=PORT
--workers N              left out: KServe's queue in front bounds concurrency, and a proxy is one process
"""

from __future__ import annotations

from collections.abc import Sequence

FLAGS = {"--model_name": "--model", "--predictor_host": "--upstream", "--http_port": "--port", "--workers": None}


def transformer_flags(command: str, words: Sequence[str]) -> list[str]:
    """A command's flags with KServe's translated; what is given as a flag of ours wins. Other commands have none."""
    if command != "proxy" or not any(word.partition("=")[0] in FLAGS for word in words):
        return list(words)
    kept, found, rest = list[str](), dict[str, str](), iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            kept.append(word)
            continue
        if not equals:
            value = next(rest, "")
        ours = FLAGS[flag]
        if ours is not None:
            found[ours] = f"http://{value}" if ours == "--upstream" and "://" not in value else value
    given = {word.partition("=")[0] for word in kept}
    return kept + [f"{ours}={value}" for ours, value in found.items() if ours not in given]
