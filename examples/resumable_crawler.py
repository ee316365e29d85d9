"""A crawler that can be stopped at any moment and goes on where it was when it is started again.

The frontier, an actor, knows which pages have been seen, are open, and are done. It is named and
checkpointable, so the next run of this program creates it again under the same name and finds it as it was.
Pages are fetched by tasks, which are retried when a server stumbles. Run it twice:

    python examples/resumable_crawler.py --state crawl-state --pages 150
    python examples/resumable_crawler.py --state crawl-state

It crawls a small site that it serves itself on the loopback interface, every seventh page of which fails at
first.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ftray as ray

SITE_PAGES = 400
IN_FLIGHT = 8
FETCH_TIMEOUT_S = 10
LINK = re.compile(r'href="(/page/\d+)"')

# --- the crawler ---------------------------------------------------------------------------------------


def make_frontier_class(store: str) -> Any:
    """The actor class; its snapshots go to the directory `store`, one after every 50 calls."""

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Frontier(ray.Checkpointable, store=store, every=50):  # type: ignore[misc, name-defined]
        def __init__(self, first: str) -> None:
            self.open = deque([first])
            self.seen = {first}
            self.sizes: dict[str, int] = {}  # of the pages that are done

        def load_checkpoint(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)
            # What was being fetched when the last run ended is neither open nor done: it is fetched again.
            waiting = set(self.open)
            self.open.extend(sorted(self.seen - waiting - self.sizes.keys()))

        def take(self) -> str | None:
            """A page to fetch, or None if none is open now."""
            return self.open.popleft() if self.open else None

        def done(self, path: str, size_bytes: int, links: list[str]) -> None:
            """Note a page as done and open the new ones that it leads to. Twice is as good as once."""
            self.sizes[path] = size_bytes
            for link in links:
                if link not in self.seen:
                    self.seen.add(link)
                    self.open.append(link)

        def progress(self) -> tuple[int, int, int]:
            """Pages done, pages seen, bytes."""
            return len(self.sizes), len(self.seen), sum(self.sizes.values())

    return Frontier


@ray.remote(max_retries=5, retry_exceptions=[OSError])
def fetch(site: str, path: str) -> tuple[str, int, list[str]]:
    """Fetch a page; return its path, its size, its links. Retried when the server or this process fails."""
    with urllib.request.urlopen(site + path, timeout=FETCH_TIMEOUT_S) as reply:
        text = reply.read().decode()
    return path, len(text), LINK.findall(text)


def crawl(frontier: Any, site: str, limit: int) -> int:
    """Fetch until nothing is open or so many pages were fetched; return how many."""
    fetched, fetching = 0, []
    while True:
        while len(fetching) < min(IN_FLIGHT, limit - fetched):
            path = ray.get(frontier.take.remote())
            if path is None:
                break
            fetching.append(fetch.remote(site, path))
        if not fetching:
            return fetched
        ready, fetching = ray.wait(fetching)
        ray.get(frontier.done.remote(*ray.get(ready[0])))
        fetched += 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Crawl a site; stop and go on.")
    parser.add_argument(
        "--state", default="crawl-state", help="directory of the snapshots (default crawl-state)"
    )
    parser.add_argument(
        "--pages", type=int, default=sys.maxsize, help="stop after so many pages (default: all)"
    )
    arguments = parser.parse_args()

    ray.init(num_cpus=2, namespace="crawler")
    frontier_class = make_frontier_class(os.path.abspath(arguments.state))
    frontier = frontier_class.options(name="frontier").remote("/page/0")
    before, _seen, _size = ray.get(frontier.progress.remote())
    print(f"resumed with {before} pages done" if before else "started from the first page")
    with serve_site() as site:
        fetched = crawl(frontier, site, arguments.pages)
    done, seen, size_bytes = ray.get(frontier.progress.remote())
    ray.get(frontier.checkpoint.remote())  # the last pages too, not only every fiftieth call
    ray.shutdown()

    print(f"fetched {fetched} pages in this run; {done} of {seen} known pages done, {size_bytes:,} bytes")
    return 0


# --- a site to crawl -----------------------------------------------------------------------------------


def page(number: int) -> str:
    """The text of a page: links to some others, the same ones each time it is asked for."""
    dice = random.Random(number)
    ahead = [number + 1, number + dice.randint(2, 9), dice.randrange(SITE_PAGES)]
    links = "".join(f'<a href="/page/{target}">{target}</a>\n' for target in ahead if target < SITE_PAGES)
    return f"<html><h1>Page {number}</h1>\n{links}</html>\n"


@contextmanager
def serve_site() -> Iterator[str]:
    """Serve the site on a free loopback port until the block ends."""
    stumbled: set[int] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(self.path.rpartition("/")[2])
            if number % 7 == 3 and number not in stumbled:
                stumbled.add(number)
                self.send_error(503)
                return
            body = page(number).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """One line for each request is more than anybody wants to read."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
