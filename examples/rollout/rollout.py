"""From a verdict to live traffic and back, in one process on this machine: `python examples/rollout/rollout.py [FOLDER]`.

Two stand-ins (a local server that knows the answers of examples/tickets) are evaluated and compared, a route is made from
the verdict, and clients ask it in shadow, canary and live. Then the small one breaks, and the watch takes it back. No figure
says anything about a real model.
"""

import contextlib
import csv
import itertools
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute

from slm_ray.cli import commands
from slm_ray.config import CompareConfig, EvaluateConfig, PrepareConfig, load
from slm_ray.evaluation import evaluate
from slm_ray.page.rollout import route_page
from slm_ray.reports.compare import compare_reports, write_comparison
from slm_ray.reports.prices import open_prices
from slm_ray.rollout.front import Front, FrontSettings
from slm_ray.rollout.grants import read_grant
from slm_ray.rollout.picture import route_picture
from slm_ray.rollout.states import Route, RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.storage import read_jsonl, write_text
from slm_ray.traffic import TrafficLog

TICKETS = Path("examples/tickets")
MOST_REQUESTS = 600  # after the small one broke; the watch rings long before
KEY = {"OPENAI_API_KEY": "none"}  # the stand-ins ask for none


class StandIns:
    """`large` and `small`: each answers a ticket as its file says, until `broken` makes the small one say one team always."""

    def __init__(self) -> None:
        with (TICKETS / "tickets.csv").open(encoding="utf-8", newline="") as file:
            self._tickets = {row["ticket"]: row["id"] for row in csv.DictReader(file)}
        self._answers = {
            name: {row["id"]: row.get("prediction") for row in read_jsonl(TICKETS / f"answers/{name}.jsonl")}
            for name in ("large", "small")
        }
        self.broken = threading.Event()

    def app(self) -> Starlette:
        return Starlette(routes=[HttpRoute("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> JSONResponse:
        body = await request.json()
        ticket = body["messages"][-1]["content"].partition("Ticket: ")[2]
        text = self._answers[body["model"]].get(self._tickets.get(ticket)) or "hardware"
        if body["model"] == "small" and self.broken.is_set():
            text = "billing"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 80, "completion_tokens": 2, "total_tokens": 82}
        return JSONResponse(
            {
                "id": "x",
                "object": "chat.completion",
                "model": f"stand-in:{body['model']}",
                "choices": [choice],
                "usage": usage,
            }
        )


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """The address of an application on a free port of this machine, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def verdict(folder: Path, llm: str, slm: str) -> Path:
    """Prepare, evaluate, compare; the folder of the comparison."""
    prepared = load(PrepareConfig, str(TICKETS / "prepare.yaml")).model_copy(
        update={"out_dir": str(folder / "examples")}
    )
    commands.prepare(prepared)
    rows = {"examples": str(folder / "examples/test.jsonl"), "train": str(folder / "examples/train.jsonl")}
    run = {"models": (llm, slm), "run_dir": str(folder / "test"), **rows}
    evaluate(load(EvaluateConfig, str(TICKETS / "evaluate.yaml")).model_copy(update=run))
    told = {"report": str(folder / "test"), "llm": llm, "slm": slm, "train": rows["train"]}
    config = load(CompareConfig, str(TICKETS / "compare.yaml")).model_copy(update=told)
    write_comparison(compare_reports(config), config)
    return folder / "test"


class Clients:
    """Forty users, who ask one ticket after the other."""

    def __init__(self, url: str, rows: list[dict[str, Any]]) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._rows, self._asked = itertools.cycle(rows), itertools.count()

    def ask(self, requests: int = 1) -> Counter[str]:
        """How many were answered by each arm; an answer that is no 200 ends the example."""
        arms: Counter[str] = Counter()
        for row, number in zip(self._rows, itertools.islice(self._asked, requests), strict=False):
            messages = [{"role": "user", "content": f"Product: {row['product']}\nTicket: {row['ticket']}"}]
            reply = self._http.post(
                "/v1/chat/completions",
                json={"model": "tickets", "messages": messages},
                headers={"x-user": f"user-{number % 40}"},
            )
            reply.raise_for_status()
            arms[reply.headers["x-slm-ray-arm"]] += 1
        return arms


def roll_out(folder: Path, url: str, store: RouteStore, stand_ins: StandIns) -> RouteState:
    """The states one after the other; the state in which the watch left the route."""
    with (TICKETS / "tickets.csv").open(encoding="utf-8", newline="") as file:
        clients = Clients(url, list(csv.DictReader(file)))
    for state, share, requests in (("shadow", None, 100), ("canary", 0.3, 100), ("live", None, 150)):
        store.move("tickets", state, share=share, reason=f"the example: {requests} requests")  # type: ignore[arg-type]
        time.sleep(1.5)  # a front sees a change within a second
        print(f"{state}: {dict(clients.ask(requests))}")
    live = store.route("tickets")
    if not live.serving:
        return live
    stand_ins.broken.set()
    for asked in range(1, MOST_REQUESTS + 1):
        clients.ask()
        if (now := store.route("tickets")).serial != live.serial:
            print(f"the small one broke; {asked} requests later: {now.state}, by {now.by}: {now.reason}")
            break
    time.sleep(1.5)
    print(f"{store.route('tickets').state}: {dict(clients.ask(40))}")
    return store.route("tickets")


def main(folder: Path) -> RouteState:
    if folder.exists():
        raise SystemExit(f"{folder} exists; remove it, or name another folder")
    os.environ |= KEY
    stand_ins, store = StandIns(), RouteStore(folder / "routes")
    with serving(stand_ins.app()) as models:
        llm, slm = f"openai:large@{models}/v1", f"openai:small@{models}/v1"
        grant = read_grant(verdict(folder, llm, slm))
        print(f"{grant.because}, which grants {', '.join(grant.allowed)}; stand-ins: {', '.join(grant.stand_ins)}")
        route = Route(name="tickets", llm=llm, slm=slm, track=str((TICKETS / "track.yaml").absolute()), base="none")
        store.create(route, adapter=None, grant=grant, reason="the example's verdict", audit_share=0.5)
        with TrafficLog(str(folder / "traffic")) as log:
            settings = FrontSettings(folder=str(folder / "routes"), endpoint="")
            front = Front(settings, environment=os.environ, log=log, prices=open_prices(None))
            with serving(front.app()) as url:
                left = roll_out(folder, url, store, stand_ins)
    picture = route_picture(folder / "routes", "tickets", traffic=str(folder / "traffic"))
    write_text(folder / "route.html", route_page(picture))
    print(f"the page: {folder / 'route.html'}")
    return left


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/rollout"))
