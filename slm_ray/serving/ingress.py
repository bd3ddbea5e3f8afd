"""The endpoint's front: OpenAI's and Azure's routes over Serve's handle of the engine, adapters by name, a key.

A client names `BASE`, `BASE:ADAPTER` or `ADAPTER`, or in the adapter's place an alias, which stands for the adapter that was
promoted last. Whatever the folder holds now is resolved, per request, first as a folder and then as an alias, to a
name that never means anything else (`adapter_cache`); multiplexing, vLLM's table and its prefix cache all go by that name,
and the response's `model` shows it.

A request body goes to the engine as it came, read and bounded by `limits`; vLLM's own reading of it is the engine's. So
nothing here imports vLLM, and a front starts in two seconds. A request whose engine dies before anything was sent is asked
of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private import constants
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from slm_ray.errors import SlmRayError
from slm_ray.serving.adapter_cache import ServedNames
from slm_ray.serving.admission import Admission, Counted, Figures, InFlight, RefuseWhenFull, Room
from slm_ray.serving.auth import RequireKey, ThisMachineOnly, key_of
from slm_ray.serving.engine_watch import RETRY_AFTER_S, EngineWatch
from slm_ray.serving.failures import OneErrorShape, failure_of, presentable, refusal
from slm_ray.serving.figures import Recorder, exported
from slm_ray.serving.keys import DEPLOYER, KeyRing
from slm_ray.serving.limits import READ, RequestLimits, body_schema
from slm_ray.serving.replica import EngineDead, Kind, Piece
from slm_ray.serving.stand_in import StandIn
from slm_ray.serving.tools import tool_problem

AZURE_CHAT = "/openai/deployments/{deployment:path}/chat/completions"
AZURE_V1 = "/openai/v1"  # the newer routes: OpenAI's own, without an api-version, the deployment named as the model
_BEGINS_WITHIN_S = 600.0  # as long as OpenAI's clients wait
_HANDLES = 1000
_MESSAGE_BYTES = 32 * 2**20  # above the longest request and the longest answer that `limits` lets be


class AdapterIngress:
    """One base model, the adapters of one folder."""

    def __init__(
        self,
        engine: Any,
        *,
        base: str,
        context: int | None,
        adapters_dir: str,
        room: Room,
        engines: int,
        tools: bool,
        api_key_digest: str | None = None,
        keys_file: str | None = None,
    ) -> None:
        # A DeploymentHandle of `EngineReplica`. By gRPC whoever has bound it: a call of its actor costs both sides more. But
        # in a Ray that was started without `ray_environment` gRPC's messages end at 4 MiB, and an actor's nowhere.
        by_grpc = _MESSAGE_BYTES <= constants.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
        self._engine = engine.options(_by_reference=not by_grpc)
        self._base = base
        self._context = context
        self._names = ServedNames(adapters_dir)
        self._stand_in: StandIn | None = None
        self._schemas: Mapping[str, Any] = {}
        self._tools = tool_problem if tools else None
        self._room = room
        self._keys = KeyRing(own_digest=api_key_digest, file=keys_file) if api_key_digest else None
        self._watch = EngineWatch(self._check_engine, engines=engines)
        self._handles: dict[str, Any] = {}
        self._app_name = ""

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take what may change while answers are written: the stand-in, and the schemas that requests name."""
        stand_in = user_config["stand_in"]
        self._stand_in = StandIn(**stand_in) if stand_in else None
        self._schemas = user_config["schemas"]

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve asks for once."""
        self._app_name = serve.get_replica_context().app_name
        self._watch.start()
        return self.application(Recorder())

    def application(self, figures: Figures) -> FastAPI:
        """The routes, and around them, outermost last: room and budgets, bounds, whether there is room at all, the key, one error shape."""
        app = FastAPI(title="slm-ray", version="1")
        chat, text = ({"requestBody": _described(body_schema(chat=each))} for each in (True, False))
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/metrics", self.metrics, methods=["GET"])
        for prefix in ("/v1", AZURE_V1):
            app.add_api_route(f"{prefix}/models", self.models, methods=["GET"])
            app.add_api_route(f"{prefix}/models/{{model:path}}", self.model_data, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], openapi_extra=chat)
        app.add_api_route("/v1/completions", self.completions, methods=["POST"], openapi_extra=text)
        app.add_api_route(AZURE_CHAT, self.azure_chat, methods=["POST"], openapi_extra=chat)
        app.add_api_route(f"{AZURE_V1}/chat/completions", self.azure_v1_chat, methods=["POST"], openapi_extra=chat)
        for kind in (HTTPException, RequestValidationError):
            app.add_exception_handler(kind, _http_error)
        in_flight = InFlight(self._room, figures)
        app.add_middleware(Admission, base=self._base, in_flight=in_flight, figures=figures, asks_usage=True)
        app.add_middleware(RequestLimits, tools=self._tools)
        app.add_middleware(RefuseWhenFull, in_flight=in_flight)
        if self._keys is not None:
            app.add_middleware(RequireKey, ring=self._keys)
        else:
            app.add_middleware(ThisMachineOnly)
        app.add_middleware(Counted, figures=figures)
        app.add_middleware(OneErrorShape)
        return app

    async def health(self) -> Response:
        """200 while the engine answers, 503 while it does not."""
        return _engine_down() if self._watch.down else JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """The figures of every front of this endpoint, for Prometheus; the deployer's key only, since they name all others."""
        key = key_of(request.scope)
        if key is not None and key.name != DEPLOYER:
            return refusal(403, "permission_denied", "the figures are for the deployer's key", "permission_error")
        return Response(await exported(self._app_name), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """An answer to a chat, whole or as a stream of events."""
        return await self._answer("chat", _body(request))

    async def completions(self, request: Request) -> Response:
        """A text that goes on after the prompt."""
        return await self._answer("completions", _body(request))

    async def azure_chat(self, deployment: str, request: Request) -> Response:
        """Chat in Azure's older shape; `deployment` is a served model's name or the stand-in's."""
        if not request.query_params.get("api-version"):
            return refusal(400, "BadRequest", "the query parameter api-version is missing")
        return await self._azure_chat({**_body(request), "model": deployment})

    async def azure_v1_chat(self, request: Request) -> Response:
        """Chat in Azure's newer shape; the request's `model` is a served model's name or the stand-in's."""
        return await self._azure_chat(_body(request))

    async def _azure_chat(self, body: dict[str, Any]) -> Response:
        if self._stand_in is not None and body.get("model") == self._stand_in.deployment:
            return await self._answer_as_stand_in(self._stand_in, body)
        try:
            await self._model_id(body.get("model"))
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return refusal(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
        return await self._answer("chat", body)

    async def _answer_as_stand_in(self, stand_in: StandIn, body: dict[str, Any]) -> Response:
        if body.get("stream"):
            return refusal(400, "BadRequest", "the stand-in does not stream, so that every answer can be labelled")
        try:
            prompt = await asyncio.to_thread(stand_in.prompt, body["messages"])
        except SlmRayError as error:
            return refusal(400, "BadRequest", presentable(str(error)))
        answer = await self._answer("chat", {**body, "model": self._base, "messages": prompt.as_dicts()})
        if answer.status_code != 200:
            return answer
        return JSONResponse({**json.loads(bytes(answer.body)), "model": stand_in.label})

    async def _model_id(self, model: str | None) -> str:
        if model is None or model == self._base:
            return self._base
        name = model.removeprefix(f"{self._base}:")
        try:
            return f"{self._base}:{await asyncio.to_thread(self._names.resolve, name)}"
        except FileNotFoundError as error:
            raise HTTPException(404, f"the model {model!r} {error}; GET /v1/models lists what there is") from None
        except SlmRayError as error:
            raise HTTPException(503, f"no adapter can be looked up: {error}") from None

    async def _answer(self, kind: Kind, body: dict[str, Any]) -> Response:
        """What the engine answers; a stream once its first piece has come."""
        model_id = await self._model_id(body.get("model"))
        body = self._with_schema({**body, "model": model_id})
        try:
            async with asyncio.timeout(_BEGINS_WITHIN_S):
                first, rest = await self._begun(kind, model_id, body)
        except TimeoutError:
            raise HTTPException(408, f"no answer has begun within {_BEGINS_WITHIN_S:g} s") from None
        if isinstance(first, str):
            return StreamingResponse(_from(first, rest), media_type="text/event-stream")
        with contextlib.suppress(Exception):  # the answer is here; Serve counts the request until its end is read
            async for _ in rest:
                pass
        status, content = first
        if status >= 500 and await self._watch.ask_now():
            raise _EngineDown(503)
        return Response(content, status, media_type="application/json")

    async def _begun(self, kind: Kind, model_id: str, body: dict[str, Any]) -> tuple[Piece, Any]:
        """The first piece of an answer, and the rest; of another engine where one dies before that."""
        for once_more in (True, False):  # not oftener: a request that kills engines would kill them all
            if self._watch.down or not self._has_engine():
                raise _EngineDown(503)
            pieces = self._handle(model_id).answer.remote(kind, body)
            try:
                return await anext(pieces), pieces
            except (RayActorError, EngineDead):
                if await self._watch.ask_now() or not once_more:
                    raise _EngineDown(503) from None
            except HTTPException as error:
                if error.status_code >= 500 and await self._watch.ask_now():
                    raise _EngineDown(503) from None
                raise
            except asyncio.CancelledError:  # nobody waits for it any more, which the engine does not hear by itself
                pieces.cancel()
                raise
        raise AssertionError

    def _handle(self, model_id: str) -> Any:
        """Serve's way to an engine that has the adapter, or to any for the base; kept, since each counts for itself."""
        if model_id not in self._handles:
            if len(self._handles) >= _HANDLES:
                self._handles.clear()
            adapter = {} if model_id == self._base else {"multiplexed_model_id": model_id}
            self._handles[model_id] = self._engine.options(stream=True, **adapter)
        return self._handles[model_id]

    def _with_schema(self, body: dict[str, Any]) -> dict[str, Any]:
        """A track's schema where the request has a name and no schema, which OpenAI's API leaves optional."""
        named: dict[str, Any] = body.get("response_format") or {}
        wanted: Any = named.get("json_schema")
        if named.get("type") != "json_schema" or wanted.get("schema") is not None:
            return body
        if wanted["name"] not in self._schemas:
            known = ", ".join(sorted(self._schemas)) or "none"
            raise HTTPException(
                400,
                f"response_format has no schema, and {wanted['name'][:60]!r} is no track whose answer_schema is served here"
                f" (serving.tracks: {known})",
            )
        filled = {**wanted, "schema": self._schemas[wanted["name"]]}
        return {**body, "response_format": {**named, "json_schema": filled}}

    async def _check_engine(self) -> None:
        if not self._has_engine():
            raise _EngineDown(503)
        await self._engine.check_health.remote()

    def _has_engine(self) -> bool:
        """Whether Serve has an engine to send a request to; while its only one is replaced it would let requests wait."""
        router = getattr(self._engine._router, "_asyncio_router", None)
        found = router.request_router if router is not None else None
        return found is None or bool(found.curr_replicas)

    async def models(self) -> Response:
        """The base, every adapter in the folder, and every alias that stands for one of them; `parent` is an adapter's base."""
        names = await asyncio.to_thread(self._names.listed)
        return JSONResponse({"object": "list", "data": [self._card(), *(self._card(*pair) for pair in names.items())]})

    async def model_data(self, model: str) -> Response:
        """The card of one model; 404 when there is no such model."""
        name = (await self._model_id(model)).partition(":")[2]
        asked = model.removeprefix(f"{self._base}:").partition("@")[0]
        return JSONResponse(self._card(asked, name) if name else self._card())

    def _card(self, adapter: str = "", name: str = "") -> dict[str, Any]:
        """The card of the base (without arguments), or of what is asked for as `adapter`, served as `name`."""
        about: dict[str, Any] = {
            "model_id": self._base, "input_modality": "text", "max_request_context_length": self._context,
        }  # fmt: skip
        card: dict[str, Any] = {
            "id": self._base, "object": "model", "owned_by": "organization-owner", "permission": [], "metadata": about,
            "parent": None,
        }  # fmt: skip
        if not adapter:
            return card
        about |= {"model_id": f"{self._base}:{adapter}", "base_model_id": self._base, "served_as": name}
        if adapter != name.partition("@")[0]:
            about["alias_of"] = f"{self._base}:{name}"
        return {**card, "id": f"{self._base}:{adapter}", "parent": self._base}


class _EngineDown(HTTPException):
    """Nobody is there to answer; a replica is being started."""


def _described(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": dict(schema)}}}


def _body(request: Request) -> dict[str, Any]:
    """The body as `RequestLimits` has read it."""
    found: dict[str, Any] = request.scope[READ][0]
    return found


async def _from(first: str, rest: Any) -> AsyncGenerator[str | bytes, None]:
    try:
        yield first
        async for piece in rest:
            yield piece if isinstance(piece, str) else piece[1]
    except (asyncio.CancelledError, GeneratorExit):  # the client has left
        rest.cancel()
        raise


async def _http_error(request: Request, error: Any) -> JSONResponse:
    """What FastAPI and its router raise, in the one shape; their own has none of its fields."""
    return _engine_down() if isinstance(error, _EngineDown) else failure_of(error)


def _engine_down() -> JSONResponse:
    return refusal(
        503, "engine_unavailable", "the engine is down and is being started again; try again later", "server_error",
        retry_after_s=RETRY_AFTER_S,
    )  # fmt: skip
