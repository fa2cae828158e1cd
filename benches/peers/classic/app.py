"""The classic stack's application: documents in PostgreSQL, with Redis in front of it (cache-aside).

A read asks Redis and, on a miss, PostgreSQL, and leaves the document in Redis for a while. A write goes to PostgreSQL and
deletes the cached copy. A reader that has missed before a write can put the old document back after it, so reads may
be stale until the copy expires: that is what this pattern promises, and all it promises.
"""

import json
import os
from contextlib import asynccontextmanager

import asyncpg
import redis.asyncio
from fastapi import FastAPI, HTTPException, Request, Response

CACHED_SECONDS = 300
CONNECTIONS_MAX = int(os.environ.get("CLASSIC_POOL", "20"))
SELECT = "SELECT document::text FROM users WHERE id = $1"
UPSERT = """
INSERT INTO users (id, document) VALUES ($1, $2::jsonb)
ON CONFLICT (id) DO UPDATE SET document = excluded.document
"""


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.database = await asyncpg.create_pool(
        os.environ["CLASSIC_POSTGRES"], min_size=CONNECTIONS_MAX, max_size=CONNECTIONS_MAX
    )
    app.state.cache = redis.asyncio.from_url(os.environ["CLASSIC_REDIS"])
    yield
    await app.state.cache.aclose()
    await app.state.database.close()


app = FastAPI(lifespan=lifespan)


@app.get("/users/{user}")
async def read(user: str) -> Response:
    cached = await app.state.cache.get(user)
    if cached is None:
        cached = await app.state.database.fetchval(SELECT, user)
        if cached is None:
            raise HTTPException(404)
        await app.state.cache.set(user, cached, ex=CACHED_SECONDS)
    return Response(cached, media_type="application/json")


@app.put("/users/{user}", status_code=204)
async def write(user: str, request: Request) -> Response:
    body = await request.body()
    try:
        document = json.loads(body)
    except ValueError:
        raise HTTPException(400) from None
    if not isinstance(document, dict):
        raise HTTPException(400)
    await app.state.database.execute(UPSERT, user, body.decode())
    await app.state.cache.delete(user)
    return Response(status_code=204)
