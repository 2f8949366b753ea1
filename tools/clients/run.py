"""Clients that people evaluate with, really run: against `adaptvis serve`, and lm-eval-harness'
own engine. What was steered is counted.

    .venv/bin/python tools/clients/run.py                  all of them
    .venv/bin/python tools/clients/run.py lm-eval litellm  some

The model is the positive control, whose answers about data/spatial are right more often with
alpha 4. Each client is installed from PyPI into an environment of its own in out/clients. Printed
are its command, the end of what it printed, and how many requests were steered by how much. The
exit status is 1 if one fails or if others were steered than should have been.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import clients
from shell import OUT, Failed, running

PORT = 8123


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", help=", ".join(clients.ALL))
    wanted = parser.parse_args().clients or list(clients.ALL)
    for name in wanted:
        if name not in clients.ALL:
            parser.error(f"clients are {', '.join(clients.ALL)}, not {name}")
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HOME": str(OUT / "hf"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    url = f"http://localhost:{PORT}"
    server = [Path(sys.executable).with_name("adaptvis"), "serve", clients.MODEL]
    server += ["--served-model-name", clients.NAME, "--alpha", "4", *clients.ENGINE]
    server += ["--port", str(PORT)]
    failed = []
    with running(server, f"{url}/health", "server.log"):
        for name in wanted:
            print(f"\n== {name}", flush=True)
            try:
                clients.ALL[name](url)
            except Failed as error:
                failed.append(name)
                print(f"FAILED: {error}")
    print("\nfailed: " + ", ".join(failed) if failed else "\nall as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
